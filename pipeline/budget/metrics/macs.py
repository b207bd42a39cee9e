"""Multiply-accumulates of one inference."""

from pipeline.budget.metric import Metric, ratio_of_values
from pipeline.candidate import Candidate
from pipeline.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    return Estimate.exact(candidate.macs)


METRIC = Metric("macs", "MACs", "count", _absolute, ratio_of_values(_absolute))
