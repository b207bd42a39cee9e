"""Heap: keeps freed memory in this process.

A batch's activations are freed layer by layer. glibc returns blocks of that size to the kernel at once, and the next layer
requests them again, zeroed page by page. That took 13 to 46 % of the time of scoring (docs/benchmarks/scoring.md).
"""

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> None:
    """Keep memory that the main thread frees for its next allocations. Nothing happens where the C library is not glibc.

    This cannot be undone, so it is for a separate process. The process keeps its peak memory until it ends.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # the C library or the system is another
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
