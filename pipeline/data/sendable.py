"""Sendable: whether an object of the user can be used in other processes."""

import io
import pickle
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import one_line

__all__ = ["why_not_sendable"]


def why_not_sendable(value: object) -> str | None:
    """Return why `value` cannot be used in another process, or None if it can.

    Python must be able to write it down. An open file or a connection cannot be written down, and two processes that share one
    would read at each other's position. Nothing is ever read back.
    """
    try:
        _Probe(_Nowhere()).dump(value)
    except Exception as problem:  # a user's object can raise anything
        return f"the data set cannot be sent to other processes ({one_line(problem, 120)})"
    return None


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


class _Probe(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Arrays can be sent, and may be large."""
        return (int, ()) if isinstance(value, Tensor | np.ndarray) and not getattr(value, "hasobject", False) else NotImplemented
