"""Decide: measure one file until it is known whether it keeps the budget."""

from pipeline.budget import Constraint, Verdict, judge
from pipeline.candidate import Candidate
from pipeline.graph.drafts import Draft
from pipeline.handover import graph_of
from pipeline.measurement import Failure, Measurement
from pipeline.probe.base import Effort, Probe

__all__ = ["REPEATS", "candidate_of", "measure_decisively", "put_together"]

REPEATS = 3
"""Further measurements of a file whose verdict stays undecided."""


def measure_decisively(
    probe: Probe,
    draft: Draft,
    processes: int,
    constraints: tuple[Constraint, ...],
    dense: Candidate,
    *,
    twice: bool = False,
) -> Measurement | Failure:
    """Fresh measurements of one file, put together until the verdict is decided or REPEATS more have been taken.

    With `twice`, a verdict counts when it stands after two measurements in succession: to stop at the first would be luck. That
    may take one more.
    """
    constraints = tuple(constraint for constraint in constraints if not constraint.metric.after_finetuning)
    total: Measurement | None = None
    before: Verdict = "undecided"
    repeats = 0
    while True:
        measured = probe.measure(graph_of(draft), Effort(processes))
        if isinstance(measured, Failure):
            return measured
        total = put_together(total, measured)
        verdict = judge(constraints, candidate_of(draft, total, None), dense)
        decided = verdict != "undecided" and (verdict == before or not twice)
        if decided or (repeats >= REPEATS and verdict != "within"):
            return total
        before, repeats = verdict, repeats + 1


def put_together(total: Measurement | None, measured: Measurement) -> Measurement:
    """Both as one; but a measurement that cannot be trusted is replaced by one that can, and spoils none."""
    if total is None or (total.doubts and not measured.doubts):
        return measured
    return total if measured.doubts and not total.doubts else total.joined(measured)


def candidate_of(draft: Draft, measured: Measurement | Failure | None, score: float | None) -> Candidate:
    """`draft` with what was found of it."""
    return Candidate(
        plan=draft.plan,
        params=draft.params,
        macs=draft.macs,
        file_size_bytes=draft.file_size_bytes,
        structure=draft.structure,
        measurement=measured if isinstance(measured, Measurement) else None,
        score=score,
        failure=measured if isinstance(measured, Failure) else None,
    )
