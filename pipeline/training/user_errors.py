"""Blame: an error that the network's own code raised is reported as the network's, with the line that raised it."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import CompressError, NetworkError, one_line

__all__ = ["network_errors", "own_line"]

_FOREIGN = (
    str(Path(__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<",
)
"""Where the user's code does not lie: in this package, in Python, in installed packages, in generated code."""


def own_line(problem: BaseException) -> str | None:
    """The innermost line of the user's code that `problem` came through, 'net.py:12'; None where it came through none."""
    lines = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in lines if not frame.filename.startswith(_FOREIGN)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else None


@contextmanager
def network_errors(what: str, *, only_own: bool = False) -> Iterator[None]:
    """Around code that runs the network for `what`: raises NetworkError for what the network raises.

    With `only_own`, errors that came through no line of the user's code are left as they are: they may be defects here.
    """
    try:
        yield
    except CompressError:
        raise
    except Exception as problem:
        line = own_line(problem)
        if only_own and line is None:
            raise
        where = f" ({line})" if line else ""
        raise NetworkError(
            f"the network's own code fails in {what}: {type(problem).__name__}: {one_line(problem)}{where}; it must run on "
            "batches, in evaluation and in training mode, also when its layers are narrower"
        ) from problem
