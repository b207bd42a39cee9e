"""Heap: memory that was freed stays with this process.

A batch's activations are freed layer by layer, and glibc gives blocks of that size back to the kernel at once, to be asked for
again, and zeroed page by page, by the next layer. That takes 13 to 46 % of the time of scoring (docs/benchmarks.md).
"""

import ctypes

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of mallopt(3)."""


def keep_freed_memory() -> bool:
    """From now on the allocator keeps what is freed for what is asked for next; this cannot be undone, so it is for a process
    of one's own. Whether it was possible: only with glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; another system
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))
