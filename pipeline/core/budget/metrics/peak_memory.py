"""Highest resident memory of a process that loads and runs the file, including the runtime's own share."""

from pipeline.core.budget.metric import Metric, ratio_of_values
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["METRIC"]


def _absolute(candidate: Candidate, dense: Candidate) -> Estimate | None:
    memory = candidate.measurement.memory if candidate.measurement else None
    return Estimate.exact(memory.peak_bytes) if memory and memory.peak_bytes is not None else None


METRIC = Metric("peak_memory", "peak memory", "bytes", _absolute, ratio_of_values(_absolute), measured=True, needs_memory=True)
