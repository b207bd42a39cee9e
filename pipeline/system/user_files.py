"""User files: distinguishes the user's own Python files from this program, Python itself and installed packages."""

import functools
import sysconfig
import traceback
from pathlib import Path

__all__ = ["is_installed", "is_program", "is_users", "own_line"]

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


def own_line(problem: BaseException) -> str | None:
    """Return the innermost line of the user's code in the traceback of `problem`, such as 'net.py:12', or None."""
    lines = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in lines if is_users(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else None


@functools.cache
def _library_folders() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(sysconfig.get_path(kind)).resolve() for kind in kinds})
