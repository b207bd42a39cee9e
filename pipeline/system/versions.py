"""Library versions: refuses versions that are known to be unsafe, however they were installed."""

import importlib.metadata
import re
from collections.abc import Mapping

from pipeline.errors import SoftwareError

__all__ = ["UNSAFE_BELOW", "installed_versions", "refuse_unsafe"]

UNSAFE_BELOW = {
    "torch": ((2, 10), "reading a checkpoint can run code in spite of weights_only"),
    "onnx": ((1, 21), "a model file can make it read files outside its folder"),
}


def installed_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return a mapping from package to installed version."""
    return {name: importlib.metadata.version(name) for name in names}


def refuse_unsafe(installed: Mapping[str, str]) -> None:
    """Check `installed` against the lowest safe versions. Raises SoftwareError for the first package below its bound."""
    for name, (bound, reason) in UNSAFE_BELOW.items():
        numbers = tuple(int(part) for part in re.findall(r"\d+", installed[name])[:2])
        if numbers < bound:
            least = ".".join(str(part) for part in bound)
            raise SoftwareError(
                f"{name} {installed[name]} is installed; below {least} {reason}; run: pip install -U '{name}>={least}'"
            )
