"""User errors: report an error in the network's own code as NetworkError, with the line that raised it."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import CompressError, NetworkError, one_line
from pipeline.system.user_files import own_line

__all__ = ["network_errors"]


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
