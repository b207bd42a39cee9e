"""Finds the folders that ship with the package: beside it in a checkout, inside it in a wheel."""

from pathlib import Path

__all__ = ["shipped_files", "shipped_folder", "shipped_weights"]


def shipped_folder(name: str) -> Path:
    """Return the path of the folder `hw_profiles` or `models`."""
    package = Path(__file__).parents[1]
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def shipped_files(folder: str, suffix: str) -> dict[str, Path]:
    """Return a mapping from stem to path of the files with `suffix` in a shipped folder."""
    return {path.stem: path for path in sorted(shipped_folder(folder).glob(f"*{suffix}"))}


def shipped_weights(model: str) -> Path | None:
    """Return the weights file that ships with the network called `model` in models/. None if there is none."""
    return shipped_files("models", ".safetensors").get(model)
