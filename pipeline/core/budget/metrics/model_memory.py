"""Peak memory above the runtime's baseline, which is the memory that the network itself needs."""

from pipeline.core.budget.metric import Metric, ratio_of_values
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    memory = candidate.measurement.memory if candidate.measurement else None
    if memory is None or memory.peak_bytes is None or memory.baseline_bytes is None:
        return None
    return Estimate.exact(memory.peak_bytes - memory.baseline_bytes)


METRIC = Metric("model_memory", "model memory", "bytes", _absolute, ratio_of_values(_absolute), measured=True, needs_memory=True)
