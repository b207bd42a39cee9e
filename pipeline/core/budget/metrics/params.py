"""Parameters of the network."""

from pipeline.core.budget.metric import Metric, ratio_of_values
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    return Estimate.exact(candidate.params)


METRIC = Metric("params", "parameters", "count", _absolute, ratio_of_values(_absolute))
