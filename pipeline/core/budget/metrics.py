"""Metrics: the figures of a candidate that a budget can limit by name. A new one is added here."""

from pipeline.core.budget.metric import Metric, ratio_of_values
from pipeline.core.candidate import Candidate
from pipeline.core.statistics import Estimate

__all__ = ["known_metrics"]


def _accuracy_drop(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Points of accuracy lost against the dense network on the same images; with an interval once both have been tested."""
    if candidate.drop is not None:
        return candidate.drop.estimate
    if candidate.score is None or dense.score is None:
        return None
    return Estimate.exact(dense.score - candidate.score)


def _file_size(candidate: Candidate, dense: Candidate) -> Estimate | None:
    return Estimate.exact(candidate.file_size_bytes)


def _latency_p50(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Median latency of one inference."""
    return candidate.measurement.latency_p50_ms if candidate.measurement else None


def _relative_latency_p50(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Against the dense graph timed in the same minute, not against its own measurement of an hour ago."""
    return candidate.measurement.relative_p50 if candidate.measurement else None


def _latency_p90(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """90th percentile of the latency, by MLPerf's early-stopping rule."""
    return candidate.measurement.latency_p90_ms if candidate.measurement else None


def _relative_latency_p90(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Against the dense graph timed in the same minute."""
    return candidate.measurement.relative_p90 if candidate.measurement else None


def _macs(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Multiply-accumulate operations of one inference."""
    return Estimate.exact(candidate.macs)


def _model_memory(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Peak memory above the runtime's baseline: what the network itself costs."""
    memory = candidate.measurement.memory if candidate.measurement else None
    if memory is None or memory.peak_bytes is None or memory.baseline_bytes is None:
        return None
    return Estimate.exact(memory.peak_bytes - memory.baseline_bytes)


def _params(candidate: Candidate, dense: Candidate) -> Estimate | None:
    return Estimate.exact(candidate.params)


def _peak_memory(candidate: Candidate, dense: Candidate) -> Estimate | None:
    """Highest resident memory of a process that loads and runs the file, the runtime's own share included."""
    memory = candidate.measurement.memory if candidate.measurement else None
    return Estimate.exact(memory.peak_bytes) if memory and memory.peak_bytes is not None else None


_METRICS = (
    Metric("accuracy_drop", "accuracy drop", "points", _accuracy_drop, None, after_finetuning=True),
    Metric("file_size", "file size", "bytes", _file_size, ratio_of_values(_file_size)),
    Metric("latency_p50", "latency p50", "ms", _latency_p50, _relative_latency_p50, measured=True, doubts=lambda m: m.doubts),
    Metric("latency_p90", "latency p90", "ms", _latency_p90, _relative_latency_p90, measured=True, doubts=lambda m: m.p90_doubts),
    Metric("macs", "MACs", "count", _macs, ratio_of_values(_macs)),
    Metric(
        "model_memory", "model memory", "bytes", _model_memory, ratio_of_values(_model_memory), measured=True, needs_memory=True
    ),
    Metric("params", "parameters", "count", _params, ratio_of_values(_params)),
    Metric("peak_memory", "peak memory", "bytes", _peak_memory, ratio_of_values(_peak_memory), measured=True, needs_memory=True),
)


def known_metrics() -> dict[str, Metric]:
    """Key -> metric."""
    return {metric.key: metric for metric in _METRICS}
