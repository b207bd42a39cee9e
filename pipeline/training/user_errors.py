"""User errors: report an error in the network's own code as NetworkError, with the line that raised it."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import CompressError, NetworkError, one_line
from pipeline.system.user_files import is_users

__all__ = ["network_errors", "own_line"]


def own_line(problem: BaseException) -> str | None:
    """Return the innermost line of the user's code in the traceback of `problem`, such as 'net.py:12', or None."""
    lines = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in lines if is_users(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else None


@contextmanager
def network_errors(what: str, *, only_own: bool = False) -> Iterator[None]:
    """Use this around code that runs the network for `what`. It turns errors of the network into NetworkError.

    With `only_own`, errors without a line of the user's code are not changed, because they may be defects of this program.
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
            "batches, in evaluation and in training mode, also when its layers have fewer channels"
        ) from problem
