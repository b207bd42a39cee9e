"""Missing files: refuse them before torch is imported, which takes seconds."""

from pathlib import Path

from pipeline.errors import DataError, ModelError

__all__ = ["refuse_missing_files"]


def refuse_missing_files(model: str, data: str | None) -> None:
    """Raise ModelError or DataError if `model` or `data` names an ONNX file or a file of arrays that does not exist."""
    for name, endings, error in ((model, (".onnx",), ModelError), (data or "", (".npy", ".npz"), DataError)):
        if not name.lower().endswith(endings):
            continue
        try:
            Path(name).stat()
        except (FileNotFoundError, NotADirectoryError) as problem:
            raise error(f"{name}: cannot be read ({problem.strerror})") from None
        except (OSError, ValueError):  # its reader says what is wrong
            pass
