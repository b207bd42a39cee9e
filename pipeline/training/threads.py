"""Threads: keep this process off cores with timed runs, and set the number of threads of torch and NumPy."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from pipeline.core.profile import available_cores
from pipeline.system.thread_settings import core_quota

__all__ = ["compute_threads", "confined"]


@contextmanager
def confined(cores: Iterable[int]) -> Iterator[Callable[[], None]]:
    """Confine all threads of this process to `cores` inside the block, or until the yielded function is called.

    Meanwhile, torch uses as many threads as there are `cores`, or fewer if a control group limits processor time. If the
    system cannot confine threads, only the number of threads is changed.
    """
    allowed, threads = available_cores(), torch.get_num_threads()
    chosen = sorted(cores)
    released = False

    def release() -> None:
        nonlocal released
        if not released:
            released = True
            _pin(allowed)
            torch.set_num_threads(threads)

    torch.set_num_threads(max(1, min(len(chosen), core_quota() or len(chosen))))
    _pin(chosen)
    try:
        yield release
    finally:
        release()


@contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Let torch and NumPy use `count` threads inside the block. The number of threads changes floating-point rounding, so a
    search that is resumed with another number could diverge.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _pin(cores: list[int]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError, PermissionError):  # the thread has ended
            os.sched_setaffinity(int(task.name), cores)
