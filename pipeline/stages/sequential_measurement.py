"""Sequential measurement: measure one file until it is decided whether it meets the budget."""

from pipeline.core.budget import Constraint, Verdict, judge
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.graph.pruned_model import PrunedModel
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.stages.probe_adapter import graph_of

__all__ = ["REPEATS", "candidate_of", "measure_sequentially", "put_together"]

REPEATS = 3
"""Number of further measurements of a file whose verdict stays undecided."""


def measure_sequentially(
    probe: Probe,
    pruned: PrunedModel,
    processes: int,
    constraints: tuple[Constraint, ...],
    dense: Candidate,
    *,
    twice: bool = False,
) -> Measurement | Failure:
    """Measure one file with fresh runs until the verdict is decided, or until REPEATS more measurements have been taken.

    With `twice`, two successive measurements must give the same verdict, because stopping at the first one would favour lucky
    files. This may take one measurement more.
    """
    constraints = tuple(constraint for constraint in constraints if not constraint.metric.after_finetuning)
    total: Measurement | None = None
    before: Verdict = "undecided"
    repeats = 0
    while True:
        measured = probe.measure(graph_of(pruned), MeasurementOptions(processes))
        if isinstance(measured, Failure):
            return measured
        total = put_together(total, measured)
        verdict = judge(constraints, candidate_of(pruned, total, None), dense)
        decided = verdict != "undecided" and (verdict == before or not twice)
        if decided or (repeats >= REPEATS and verdict != "within"):
            return total
        before, repeats = verdict, repeats + 1


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
