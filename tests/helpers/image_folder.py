"""The type of the fixture `image_folder`."""

from collections.abc import Callable
from pathlib import Path

__all__ = ["ImageFolder"]

ImageFolder = Callable[..., Path]
"""(folder, ...) -> a folder of images; see the fixture in tests/conftest.py."""
