"""The table of an artifact: a row for each limit of the budget, and one for each other figure."""

from dataclasses import replace

from pipeline.core.artifact import Row
from pipeline.core.budget import Constraint, Metric, Verdict, known_metrics
from pipeline.core.candidate import Candidate
from pipeline.core.paired_difference import images_to_decide

__all__ = ["budget_rows"]


def budget_rows(
    constraints: tuple[Constraint, ...], dense: Candidate, shipped: Candidate, score_name: str = "accuracy"
) -> list[Row]:
    """The rows of the budget's limits first, then the other figures for information. `score_name`: see `Task.score_name`."""
    limited = {constraint.metric.key for constraint in constraints}
    others = [metric for metric in known_metrics().values() if metric.key not in limited]
    return [
        replace(row, title=f"{score_name} (test)") if row.key == "accuracy_drop" else row
        for row in (
            *(_row(constraint.metric, constraint, dense, shipped) for constraint in constraints),
            *(_row(metric, None, dense, shipped) for metric in others),
        )
    ]


def _row(metric: Metric, constraint: Constraint | None, dense: Candidate, shipped: Candidate) -> Row:
    before, after = metric.absolute(dense, dense), metric.absolute(shipped, dense)
    if shipped.measurement:
        # the dense graph as it ran in the same minutes, not as it ran at the start
        paired = {"latency_p50": shipped.measurement.reference_p50_ms, "latency_p90": shipped.measurement.reference_p90_ms}
        before = paired.get(metric.key) or before
    is_accuracy = metric.key == "accuracy_drop"
    drop = shipped.drop if is_accuracy else None
    verdict = _verdict(constraint, shipped, dense) if constraint else None
    return Row(
        key=metric.key,
        title=metric.title,
        unit=metric.unit,
        dense=dense.score if is_accuracy else before.value if before else None,
        after=shipped.score if is_accuracy else after.value if after else None,
        ratio=metric.relative(shipped, dense) if metric.relative else None,
        limit=constraint.limit if constraint else None,
        relative=constraint.relative if constraint else False,
        verdict=verdict,
        drop=drop.estimate if drop else None,
        test_images_needed=images_to_decide(drop, constraint.limit) if drop and constraint and verdict == "undecided" else None,
        reason=constraint.reason(shipped, dense) if constraint else "",
    )


def _verdict(constraint: Constraint, shipped: Candidate, dense: Candidate) -> Verdict:
    """The verdict on one limit. Only the device can say 'within': a predicted 'within' becomes 'undecided'."""
    found = constraint.verdict(shipped, dense)
    predicted = shipped.measurement is not None and shipped.measurement.fingerprint.mode == "predicted"
    return "undecided" if found == "within" and predicted and constraint.metric.measured else found
