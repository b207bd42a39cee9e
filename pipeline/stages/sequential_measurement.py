"""Sequential measurement: measure one file until it is decided whether it meets the budget."""

import functools
import itertools
import math
from collections.abc import Callable

from pipeline.core.budget import Constraint, Verdict, judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.profile import ProbeSettings
from pipeline.core.progress import Callback
from pipeline.core.run import Trial
from pipeline.graph.pruned_model import PrunedModel
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.stages.probe_adapter import graph_of

__all__ = [
    "MOST_MEASUREMENTS",
    "REPEATS",
    "candidate_of",
    "measure_again",
    "measure_longer",
    "measure_sequentially",
    "measurement_s",
    "put_together",
]

REPEATS = 3
"""Number of further measurements of a file whose verdict stays undecided."""
MOST_MEASUREMENTS = 12
"""Largest number of measurements of the shipped file."""


def measure_sequentially(
    probe: Probe, pruned: PrunedModel, processes: int, constraints: tuple[Constraint, ...], dense: Candidate
) -> Measurement | Failure:
    """Measure one file with fresh runs until the verdict is decided, or until REPEATS more measurements have been taken."""
    measure = functools.partial(probe.measure, graph_of(pruned), MeasurementOptions(processes, every_board=True))
    return _until_decided(measure, lambda total: _verdict(constraints, candidate_of(pruned, total, None), dense), twice=False)


def measure_again(
    probe: Probe,
    pruned: PrunedModel,
    processes: int,
    constraints: tuple[Constraint, ...],
    dense: Candidate,
    begins: Callable[[int], None],
) -> Measurement | Failure:
    """Measure a plan of the search with fresh runs until it is known on which side of each limit it is.

    Two successive measurements must agree, because stopping at the first one would favour lucky files. REPEATS more than the
    first one are taken at most, and one more if the last one is the first to be within. Doubts about the machine do not count:
    they are the same for all plans. `begins` is called with the number of each measurement, from 1.
    """
    numbers = itertools.count(1)

    def measure() -> Measurement | Failure:
        begins(next(numbers))
        return probe.measure(graph_of(pruned), MeasurementOptions(processes, every_board=True))

    return _until_decided(measure, lambda total: _side(constraints, candidate_of(pruned, total, None), dense), twice=True)


def _until_decided(
    measure: Callable[[], Measurement | Failure], verdict_on: Callable[[Measurement], Verdict], *, twice: bool
) -> Measurement | Failure:
    total: Measurement | None = None
    before: Verdict = "undecided"
    repeats = 0
    while True:
        measured = measure()
        if isinstance(measured, Failure):
            return measured
        total = put_together(total, measured)
        verdict = verdict_on(total)
        decided = verdict != "undecided" and (verdict == before or not twice)
        if decided or (repeats >= REPEATS and verdict != "within"):
            return total
        before, repeats = verdict, repeats + 1


def _verdict(constraints: tuple[Constraint, ...], candidate: Candidate, dense: Candidate) -> Verdict:
    """The verdict on the limits that can be judged before the final test."""
    return judge(tuple(each for each in constraints if not each.metric.after_finetuning), candidate, dense)


def _side(constraints: tuple[Constraint, ...], candidate: Candidate, dense: Candidate) -> Verdict:
    """The verdict of the intervals alone."""
    found = violations(tuple(each for each in constraints if not each.metric.after_finetuning), candidate, dense)
    if any(each.low > 0 for each in found):
        return "over"
    return "within" if all(each.high <= 0 for each in found) else "undecided"


def measure_longer(
    probe: Probe,
    pruned: PrunedModel,
    processes: int,
    constraints: tuple[Constraint, ...],
    dense: Candidate,
    callback: Callback,
) -> Measurement | Failure:
    """Measure the file that ships. If an interval still contains its limit, measure longer, and say so.

    It begins like `measure_sequentially`. The number of further measurements follows from the width of the interval, with at most
    MOST_MEASUREMENTS in all. It is fixed before they start: a stop at the first good verdict would favour lucky files.
    """
    done, most = 0, 1 + REPEATS

    def measure() -> Measurement | Failure:
        nonlocal done
        callback.progress(done, most, f"measuring the final file, {done} of at most {most} measurements are done")
        done += 1
        return probe.measure(graph_of(pruned), MeasurementOptions(processes, every_board=True))

    total = _until_decided(measure, lambda total: _verdict(constraints, candidate_of(pruned, total, None), dense), twice=False)
    if isinstance(total, Failure):
        return total
    taken, judged = 1 + REPEATS, tuple(constraint for constraint in constraints if not constraint.metric.after_finetuning)
    needed = _measurements_needed(taken, judged, candidate_of(pruned, total, None), dense)
    further = math.ceil(min(needed, MOST_MEASUREMENTS)) - taken
    if further <= 0:
        return total
    most = taken + further
    callback.say(
        f"the limit is inside the interval after {taken * processes} processes; {further * processes} more are timed, so that "
        f"there are {(taken + further) * processes} of at most {MOST_MEASUREMENTS * processes}"
    )
    for _ in range(further):
        measured = measure()
        if isinstance(measured, Failure):
            return measured
        total = put_together(total, measured)
    return total


def _measurements_needed(taken: int, constraints: tuple[Constraint, ...], candidate: Candidate, dense: Candidate) -> float:
    """The number of measurements that should decide every undecided constraint; 0 if more measurements would not help.

    An interval gets narrower with the square root of the number. The number is twice that which would do if the figure stayed as
    it is. Disturbed figures (`doubts`) stay undecided however often they are measured.
    """
    undecided = [each for each in constraints if each.verdict(candidate, dense) == "undecided"]
    if any(each.doubts(candidate) for each in undecided) or judge(constraints, candidate, dense) != "undecided":
        return 0
    needed = 0.0
    for violation in violations(undecided, candidate, dense):
        half = violation.high - violation.value if violation.value <= 0 else violation.value - violation.low
        needed = max(needed, 2 * taken * (half / abs(violation.value)) ** 2 if violation.value else math.inf)
    return needed


def measurement_s(settings: ProbeSettings, thinnest: Trial | None) -> float:
    """How long a measurement of `final_processes` takes, if each is as slow as those of the thinnest plan; 0 if unknown."""
    return thinnest.seconds * settings.final_processes / settings.processes if thinnest else 0.0


def put_together(total: Measurement | None, measured: Measurement) -> Measurement:
    """Both measurements as one. A measurement without doubts replaces one with doubts, and is never mixed with one."""
    if total is None or (total.doubts and not measured.doubts):
        return measured
    return total if measured.doubts and not total.doubts else total.joined(measured)


def candidate_of(pruned: PrunedModel, measured: Measurement | Failure | None, score: float | None) -> Candidate:
    """A candidate from `pruned`, its measurement and its score."""
    return Candidate(
        plan=pruned.plan,
        params=pruned.params,
        macs=pruned.macs,
        file_size_bytes=pruned.file_size_bytes,
        structure=pruned.structure,
        measurement=measured if isinstance(measured, Measurement) else None,
        score=score,
        failure=measured if isinstance(measured, Failure) else None,
    )
