"""Plausibility: checks of figures that were read from a file. They are needed because a parser accepts NaN and -1 ms."""

import math
from collections.abc import Iterable

from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Measurement, TimedProcess
from pipeline.foreign_text import clean_text

__all__ = ["implausible_candidate", "implausible_measurement"]

MOST = 2**60
"""No count and no size reaches this. A larger number could not be computed with."""
MOST_MS = 1e12
"""Thirty years. Sums of larger numbers would not be finite."""


def implausible_candidate(candidate: Candidate) -> str | None:
    """Return why the figures of `candidate` are impossible; None when they are plausible."""
    counts = {"params": candidate.params, "macs": candidate.macs, "file size": candidate.file_size_bytes}
    shares = (candidate.entropy, candidate.kept_entropy, candidate.dead_share, candidate.kept_channel_entropy)
    if found := next((name for name, count in counts.items() if count < 0), None):
        return f"{found} is below zero"
    if any(width < 1 for _, width in candidate.plan):
        return "a width is below one"
    if found := next((name for name, count in (*counts.items(), *candidate.plan) if count >= MOST), None):
        return f"{clean_text(found, 60)} is out of range"
    if candidate.score is not None and not math.isfinite(candidate.score):
        return "the score is not a finite number"
    if any(share is not None and not (math.isfinite(share) and share >= 0) for share in shares):
        return "an entropy is not a finite number, or below zero"
    if candidate.failure is None and candidate.measurement is None:
        return "it has neither a measurement nor a failure"
    return implausible_measurement(candidate.measurement) if candidate.measurement else None


def implausible_measurement(measurement: Measurement) -> str | None:
    """Return why the figures of `measurement` are impossible; None when they are plausible."""
    if not measurement.processes:
        return "no process was timed"
    memory = measurement.memory
    sizes = (memory.baseline_bytes, memory.session_bytes, memory.peak_bytes, memory.rss_bytes)
    if any(size is not None and not 0 <= size < MOST for size in sizes):
        return "a memory figure is below zero or out of range"
    parts = (*map(_implausible_process, measurement.processes), *map(implausible_measurement, measurement.others))
    return next(filter(None, parts), None)


def _implausible_process(process: TimedProcess) -> str | None:
    if not process.latency_ms or not all(process.latency_ms):
        return "a block holds no runs"
    # without a reference, its blocks are missing or empty
    if any(process.reference_latency_ms) and not all(process.reference_latency_ms):
        return "a block of the reference holds no runs"
    if not all(_positive(block) for block in (*process.latency_ms, *process.reference_latency_ms)):
        return "a latency is not a finite number above zero, or out of range"
    times = (process.session_creation_ms, process.first_run_ms, process.cpu_ms_per_run, process.timed_ms)
    if not all(0 <= time < MOST_MS for time in times):
        return "a time is not a finite number, or below zero, or out of range"
    return "the count of pre-emptions is below zero" if (process.preemptions or 0) < 0 else None


def _positive(values: Iterable[float]) -> bool:
    return all(0 < value < MOST_MS for value in values)
