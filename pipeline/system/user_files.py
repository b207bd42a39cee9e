"""User files: distinguishes the user's own Python files from this program, Python itself and installed packages."""

import functools
import sysconfig
from pathlib import Path

__all__ = ["is_installed", "is_program", "is_users"]

_PROGRAM = Path(__file__).resolve().parents[1]


def is_program(file: str | Path) -> bool:
    """Whether `file` belongs to this program, or is no file but generated code such as `<string>`."""
    return str(file).startswith("<") or Path(file).is_relative_to(_PROGRAM)


def is_installed(file: str | Path) -> bool:
    """Whether `file` belongs to the standard library or to an installed package."""
    return any(Path(file).is_relative_to(folder) for folder in _library_folders())


def is_users(file: str | Path) -> bool:
    """Whether `file` is the user's own code.

    >>> is_users("/home/me/nets.py"), is_users(__file__)
    (True, False)
    """
    return not is_program(file) and not is_installed(file)


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(kind)).resolve() for kind in kinds})
