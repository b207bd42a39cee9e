"""Loader: batches are read ahead by worker processes of torch's DataLoader, and arrive in order.

The workers are forked, so that they share the data set and the images that are already in memory. What they read does not depend
on their number. If one of them fails, the rest is read in this process.
"""

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import compute_device
from pipeline.core.profile import available_cores
from pipeline.errors import one_line

__all__ = ["Readable", "in_worker", "loading", "read_batches", "usual_workers"]

MOST_WORKERS = 8
PREFETCHED = 2
"""Batches that each worker reads ahead."""

Task = TypeVar("Task")


@runtime_checkable
class Readable(Protocol):
    """A source of images that takes time to read, so that workers may pay."""

    def holds(self, indices: Tensor) -> bool:
        """Whether all images at `indices` are in memory."""

    def keep(self, indices: Tensor, inputs: Inputs) -> None:
        """Keep what a worker read, as far as there is room."""

    def refusal(self) -> str | None:
        """Why other processes cannot read it, or None if they can."""


class _Loading:
    """How many workers read, and who is told if they cannot."""

    def __init__(self, workers: int | None, notify: Callable[[str], None]) -> None:
        self.workers, self.notify = workers, notify

    def count(self) -> int:
        if not hasattr(os, "fork") or multiprocessing.current_process().daemon:
            return 0  # a process that scores plans must not have children
        return usual_workers() if self.workers is None else self.workers

    def give_up(self, reason: str) -> None:
        self.workers = 0
        self.notify(f"images are read in one process, because {reason}")


_chosen: list[_Loading] = [_Loading(None, lambda text: None)]


@contextmanager
def loading(workers: int | None, notify: Callable[[str], None]) -> Iterator[None]:
    """Read batches with `workers` processes inside the block. None: `usual_workers`. `notify` is told if they cannot be used."""
    _chosen.append(_Loading(workers, notify))
    try:
        yield
    finally:
        _chosen.pop()


def usual_workers() -> int:
    """Return the number of workers that pay: none on a processor, which computes and reads in turn on all of its cores; beside a
    GPU one per core but one, at most MOST_WORKERS.
    """
    return 0 if compute_device().type == "cpu" else min(len(available_cores()) - 1, MOST_WORKERS)


def in_worker() -> bool:
    """Whether this process is a worker."""
    return get_worker_info() is not None


def read_batches(read: Callable[[Task], Inputs], tasks: Sequence[Task], source: object, indices: Tensor) -> Iterator[Inputs]:
    """Yield `read(task)` for each of `tasks`, in order. Workers read them ahead if `source` is `Readable` and not in memory.

    `indices` are all images that the tasks need.
    """
    chosen = _chosen[-1]
    workers = min(chosen.count(), len(tasks)) if len(tasks) > 1 and isinstance(source, Readable) else 0
    if not workers or not isinstance(source, Readable) or source.holds(indices):
        return map(read, tasks)
    if (reason := source.refusal()) is not None:
        chosen.give_up(reason)
        return map(read, tasks)
    return _read_ahead(read, tasks, workers, chosen)


def _read_ahead(read: Callable[[Task], Inputs], tasks: Sequence[Task], workers: int, chosen: _Loading) -> Iterator[Inputs]:
    left, waiting = iter(tasks), deque[Task]()

    def handed() -> Iterator[Task]:
        for task in left:
            waiting.append(task)
            yield task

    answers: Iterator[Any] | None = None
    while True:
        try:
            answers = _started(read, handed(), workers) if answers is None else answers
            answer = next(answers)
        except StopIteration:
            return
        except (RuntimeError, OSError) as problem:
            chosen.give_up(f"a process that reads them ended ({one_line(problem, 120)})")
            break
        if isinstance(answer, _Failed):
            inputs = read(waiting[0])  # raises the same error here, where it is understood
            chosen.give_up(f"a process of its own cannot read them ({answer.reason})")
            waiting.popleft()
            yield inputs
            break
        waiting.popleft()
        yield answer
    del answers  # ends the other workers
    yield from map(read, chain(tuple(waiting), left))


@dataclass(frozen=True)
class _Failed:
    reason: str


class _Reads(Dataset[Any], Generic[Task]):
    """A batch as an item, for `DataLoader`."""

    def __init__(self, read: Callable[[Task], Inputs]) -> None:
        self.read = read

    def __getitem__(self, task: Task) -> Any:
        try:
            return self.read(task)
        except Exception as problem:  # a user's data set can raise anything, and not every error can be sent
            return _Failed(f"{type(problem).__name__}: {one_line(problem, 120)}")


def _started(read: Callable[[Task], Inputs], tasks: Iterable[Task], workers: int) -> Iterator[Any]:
    loader = DataLoader(
        _Reads(read),
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        prefetch_factor=PREFETCHED,
        collate_fn=_unchanged,
        pin_memory=compute_device().type == "cuda",
        multiprocessing_context="fork",
        generator=torch.Generator(),  # the global one is the training's
    )
    handler = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more workers than cores
        answers = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)  # DataLoader's own would raise an error anywhere in this program
    return answers


def _unchanged(item: Any) -> Any:
    return item
