"""Score workers: processes of this machine that score plans at the same time.

They are forked, so that they share the network, the weights and the images with this process and load nothing again. Each one
computes with one thread: OpenMP does not start threads in a forked process. `torch.utils.data` does the same with its workers.
"""

import contextlib
import os
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

import torch

from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.errors import CompressError, RunError
from pipeline.training.threads import compute_threads

__all__ = ["MOST_DEATHS", "ScoreWorkers", "can_fork"]

MOST_DEATHS = 3
"""A plan whose worker died this often is the cause itself."""

Score = Callable[[ChannelPlan, float | None], Candidate]


def can_fork() -> bool:
    """Whether scoring may run in forked processes. A GPU cannot be used in a fork of a process that used it."""
    return hasattr(os, "fork") and not torch.cuda.is_initialized()


class ScoreWorkers:
    """`count` processes that call `score`. Use it as a context manager; its methods may be called from several threads."""

    def __init__(self, score: Score, count: int, cores: Sequence[int]) -> None:
        """`cores`: the cores for the workers, one each, in turn. Other processes may be timed on all others."""
        self._score, self._cores = score, tuple(cores)
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._forking = threading.Lock()
        for number in range(count):
            self._start(number)
            self._free.put(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        for process, pipe in self._workers.values():
            pipe.close()
            process.terminate()
        for process, _ in self._workers.values():
            process.join(10)

    @property
    def processes(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return tuple(process.pid or 0 for process, _ in self._workers.values())

    def score(self, plan: ChannelPlan, to_beat: float | None = None) -> Candidate:
        """Score `plan` in a free worker, and wait for it. `to_beat` is passed on.

        A worker that dies is replaced, and the plan is given to the new one.

        Raises the error of the score, and RunError if MOST_DEATHS workers died with this plan.
        """
        number = self._free.get()
        try:
            for _ in range(MOST_DEATHS):
                process, pipe = self._workers[number]
                try:
                    pipe.send((plan, to_beat))
                    found: Candidate | Exception = pipe.recv()
                except (EOFError, OSError):
                    process.join(10)
                    status = process.exitcode
                    self._start(number)
                    continue
                if isinstance(found, Exception):
                    raise found
                return found
        finally:
            self._free.put(number)
        reason = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
        raise RunError(
            f"a process that scores plans ended {MOST_DEATHS} times with the same plan ({reason}); the memory may be too small: "
            "use fewer --workers; all finished trials are saved"
        )

    def _start(self, number: int) -> None:
        context = get_context("fork")
        with self._forking, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads; see above
            ours, theirs = context.Pipe()
            core = self._cores[number % len(self._cores)] if self._cores else None
            others = [pipe for _, pipe in self._workers.values()]
            process = context.Process(target=_serve, args=(theirs, (ours, *others), self._score, core), daemon=True)
            process.start()
            theirs.close()
            self._workers[number] = process, ours


def _serve(pipe: Connection, others: Sequence[Connection], score: Score, core: int | None) -> None:
    """Answer plans until the other end of the pipe is closed. `others`: ends that belong to the parent, which would stay open."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent closes the pipe
    for each in others:
        each.close()
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, [core])
    with compute_threads(1):
        while True:
            try:
                plan, to_beat = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)
            pipe.send(_answer(score, plan, to_beat))


def _answer(score: Score, plan: ChannelPlan, to_beat: float | None) -> Any:
    """Return what `score` returns, or the error that it raises, in a form that can be sent to another process."""
    try:
        return score(plan, to_beat)
    except CompressError as problem:
        return problem
    except Exception as problem:  # a user's task can raise anything, and not every error can be sent
        return RunError(f"scoring a plan failed: {type(problem).__name__}: {problem}")
