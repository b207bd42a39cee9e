"""90th percentile of the latency, by MLPerf's early-stopping rule."""

from pipeline.core.budget.metric import Metric
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    return candidate.measurement.latency_p90_ms if candidate.measurement else None


def _relative(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Compare with the dense graph timed in the same minute."""
    return candidate.measurement.relative_p90 if candidate.measurement else None


METRIC = Metric("latency_p90", "latency p90", "ms", _absolute, _relative, measured=True, doubts=lambda m: m.p90_doubts)
