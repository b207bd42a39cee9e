"""Stability: when a measurement deserves doubt."""

import numpy as np

from pipeline import statistics
from pipeline.measurement import TimedProcess

__all__ = ["remarks_on"]

SPREAD_LIMIT = 0.10
"""Processes whose medians (over the reference's, where there is one) differ by more than this disagree."""


def remarks_on(processes: tuple[TimedProcess, ...], noise_limit: float, attempt: int) -> tuple[str, ...]:
    """Why the runs deserve doubt; empty when they do not. `attempt` counts from 0 and is told when doubt remains."""
    remarks = []
    noise = statistics.noise(tuple(process.latency_ms for process in processes))
    if noise > noise_limit:
        remarks.append(f"noisy: the runs deviate from their median by {100 * noise:.0f} % (limit {100 * noise_limit:.0f} %)")
    levels = [_level(process) for process in processes]
    spread = max(levels) / min(levels) - 1
    if spread > SPREAD_LIMIT:
        remarks.append(f"processes disagree by {100 * spread:.0f} %")
    if remarks and attempt:
        remarks.append(f"repeated {attempt} times")
    return tuple(remarks)


def _level(process: TimedProcess) -> float:
    middle = float(np.median([run for block in process.latency_ms for run in block]))
    if not process.reference_latency_ms:
        return middle
    return middle / float(np.median([run for block in process.reference_latency_ms for run in block]))
