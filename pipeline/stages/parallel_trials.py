"""Parallel trials: plans are measured on several boards and scored in several processes at the same time.

This process writes the journal. A trial is recorded as soon as it ends, under the number of its question. The evaluations are
told to the searcher in the order of the questions (`pipeline.search.ask_tell.drive`).
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, Protocol, Self

from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import available_cores
from pipeline.core.run import Run, Trial
from pipeline.probe.interface import Probe
from pipeline.probe.pool import PoolProbe
from pipeline.search.ask_tell import at_once, drive
from pipeline.search.problem import Evaluation, Problem, SearcherFactory
from pipeline.stages.evaluate import Evaluator
from pipeline.stages.score_workers import ScoreWorkers, can_fork
from pipeline.training.threads import compute_threads, confined

__all__ = ["ParallelTrials", "Scoring", "Workers", "bound_in_flight", "free_cores", "run_search", "worker_count"]

Workers = int | Literal["auto"] | None
"""Number of processes that score plans. "auto": one per core that no run is timed on. None: "auto" with a pool, and else 1."""
AHEAD = 2
"""Plans in evaluation per board of a pool. A board that takes twice as long as the others then keeps none of them waiting."""


class Scoring(Protocol):
    """Scores plans. It may be called from several threads."""

    def score(self, plan: ChannelPlan, to_beat: float | None = None) -> Candidate:
        """Score `plan`, and wait for it. A plan that clearly scores less than `to_beat` gets a rougher score."""
        ...


class _InThisProcess:
    """Scores one plan after the other, where processes cannot be forked, as with a GPU."""

    def __init__(self, score: Callable[[ChannelPlan, float | None], Candidate]) -> None:
        self._score, self._lock = score, threading.Lock()

    def score(self, plan: ChannelPlan, to_beat: float | None = None) -> Candidate:
        with self._lock:
            return self._score(plan, to_beat)


class ParallelTrials:
    """Runs trials of a search at the same time. Use it as a context manager."""

    def __init__(self, evaluator: Evaluator, scoring: Scoring, in_flight: int) -> None:
        self._evaluator, self._scoring = evaluator, scoring
        self._trials = ThreadPoolExecutor(in_flight, "trial")
        self._measuring = ThreadPoolExecutor(in_flight, "measure")
        self._journal = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self._trials.shutdown(cancel_futures=True)
        self._measuring.shutdown(cancel_futures=True)

    def submit(self, number: int, plan: ChannelPlan) -> Callable[[], Evaluation]:
        """Start the trial `number`, or read it in the journal. Returns a function that waits for its evaluation.

        Raises RunError if the journal has another plan under this number.
        """
        with self._journal:
            known = self._evaluator.measurer.known("search", number, plan)
        if known is not None:
            return lambda: self._evaluator.told(number, known)
        # the best of the answers that the searcher was told, which do not depend on how long each took
        running = self._trials.submit(self._run, number, plan, self._evaluator.to_beat())
        return lambda: self._evaluator.told(number, running.result())

    def _run(self, number: int, plan: ChannelPlan, to_beat: float | None) -> Candidate:
        measurer, started = self._evaluator.measurer, time.monotonic()
        measuring = self._measuring.submit(measurer.measured, plan)
        scored = self._scoring.score(plan, to_beat)
        measured = measuring.result()
        candidate = replace(
            scored,
            measurement=measured if isinstance(measured, Measurement) else None,
            failure=measured if isinstance(measured, Failure) else None,
        )
        with self._journal:
            measurer.context.run.record(Trial("search", number, candidate, round(time.monotonic() - started, 3)))
        return candidate


def run_search(make: SearcherFactory, evaluator: Evaluator, problem: Problem, workers: Workers) -> None:
    """Run the searcher of `make`, with as many plans in evaluation as boards and workers can use.

    With one board and one worker, plans are evaluated one after the other. So they are, with a notice, if runs are timed on all
    cores of this machine, and by a function that does the search itself.
    """
    context, probe = evaluator.measurer.context, evaluator.measurer.probe
    cores = free_cores(probe)
    with contextlib.ExitStack() as opened:
        score = evaluator.measurer.scorer(evaluator.weights)
        count = worker_count(workers, probe, len(cores))
        wanted = _in_flight(probe, count)
        if wanted > 1 and not cores:
            context.notices.add("plans are evaluated one after the other, because runs are timed on all cores of this machine")
            wanted = 1
        in_flight = bound_in_flight(context.run, wanted)
        searcher = make(problem)
        if searcher is None:
            return
        if in_flight == 1:
            drive(searcher, at_once(evaluator), problem.trials, 1)
            return
        if probe.busy_cores and cores:
            opened.enter_context(confined(cores))
            opened.enter_context(compute_threads(1))
        scoring = opened.enter_context(ScoreWorkers(score, count, cores)) if can_fork() else _InThisProcess(score)
        trials = opened.enter_context(ParallelTrials(evaluator, scoring, in_flight))
        drive(searcher, trials.submit, problem.trials, in_flight)


def free_cores(probe: Probe) -> list[int]:
    """The cores on which plans can be scored while runs are timed."""
    busy = set(probe.busy_cores)
    return [core for core in available_cores() if core not in busy]


def worker_count(workers: Workers, probe: Probe, cores: int) -> int:
    """The number of scoring processes, at least 1. `cores`: number of free cores."""
    pooled = isinstance(probe, PoolProbe)
    if workers is None and not pooled:
        return 1
    if workers in (None, "auto"):
        most = AHEAD * _boards(probe) if pooled else math.inf
        return int(max(1, min(cores, most)))
    return int(workers or 1)


def bound_in_flight(run: Run, wanted: int) -> int:
    """The number of plans in evaluation. It is part of the search, so a resumed run keeps that of its first process."""
    bound = run.facts("search")
    if bound is not None:
        return int(bound["in_flight"])
    if wanted > 1 and not any(trial.role == "search" for trial in run.trials):
        run.bind("search", {"in_flight": wanted})
        return wanted
    return 1


def _in_flight(probe: Probe, workers: int) -> int:
    boards = _boards(probe)
    return max(AHEAD * boards if boards > 1 else 1, workers)


def _boards(probe: Probe) -> int:
    return len(probe.boards) if isinstance(probe, PoolProbe) else 1
