"""Median latency of one inference."""

from pipeline.core.budget.metric import Metric
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    return candidate.measurement.latency_p50_ms if candidate.measurement else None


def _relative(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Compare with the dense graph timed in the same minute, because its own measurement may be an hour old."""
    return candidate.measurement.relative_p50 if candidate.measurement else None


METRIC = Metric("latency_p50", "latency p50", "ms", _absolute, _relative, measured=True, doubts=lambda m: m.doubts)
