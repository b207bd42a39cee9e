"""Points of accuracy lost against the dense network on the same images, with an interval once both have been tested."""

from pipeline.core.budget.metric import Metric
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    if candidate.drop is not None:
        return candidate.drop.estimate
    if candidate.score is None or dense.score is None:
        return None
    return Estimate.exact(dense.score - candidate.score)


METRIC = Metric("accuracy_drop", "accuracy drop", "points", _absolute, None, after_finetuning=True)
