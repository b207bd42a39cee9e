"""Heap: memory that was freed stays with this process.

A batch's activations are freed layer by layer, and glibc gives blocks of that size back to the kernel at once, to be asked for
again, and zeroed page by page, by the next layer. That took 13 to 46 % of the time of scoring (docs/benchmarks/scoring.md).
"""

import contextlib
import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> None:
    """From now on what the main thread frees is kept for what it asks for next; nothing happens where the C library is not glibc.

    This cannot be undone, so it is for a process of one's own. The most that was ever needed at once stays taken until the end.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library; another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
