"""Statistics of latencies: median, MLPerf's p90, bootstrap intervals. Pure functions of the raw runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Blocks",
    "Estimate",
    "early_stopping_discards",
    "estimate",
    "median",
    "noise",
    "p90_estimate",
    "percentile_90",
    "ratio_estimate",
]

Blocks = tuple[tuple[tuple[float, ...], ...], ...]
"""Processes x blocks x runs."""

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

RESAMPLES = 400
LEVEL = 0.95
MIN_BLOCKS = 16
"""Fewer say too little about each other: their runs are drawn as well then, or a single block would look exact."""


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval it lies in."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """A counted figure: no interval."""
        return cls(value, value, value)

    def scaled(self, factor: float) -> "Estimate":
        """The figure in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def median(runs: Floats) -> Floats:
    """Median along the last axis."""
    return np.asarray(np.median(runs, axis=-1))


def percentile_90(runs: Floats) -> Floats:
    """90th percentile along the last axis."""
    return np.asarray(np.percentile(runs, 90, axis=-1))


def noise(blocks: Blocks) -> float:
    """Median absolute deviation over the median, within processes, the largest of them."""
    worst = 0.0
    for process in blocks:
        runs = np.concatenate([np.asarray(block) for block in process])
        middle = float(np.median(runs))
        worst = max(worst, float(np.median(np.abs(runs - middle))) / middle)
    return worst


def estimate(blocks: Blocks, statistic: Statistic) -> Estimate:
    """`statistic` of all runs, with a bootstrap interval over processes and the blocks inside them."""
    point = float(statistic(_flatten(blocks)))
    samples = statistic(_resample(blocks, seed=0))
    return _interval(point, samples)


def ratio_estimate(blocks: Blocks, reference: Blocks, statistic: Statistic) -> Estimate | None:
    """`statistic` of the runs over that of the reference's, neighbours resampled together so that drift cancels."""
    if not reference or not all(reference):
        return None
    point = float(statistic(_flatten(blocks)) / statistic(_flatten(reference)))
    samples = statistic(_resample(blocks, seed=0)) / statistic(_resample(reference, seed=0))
    return _interval(point, samples)


def p90_estimate(blocks: Blocks) -> Estimate | None:
    """The early-stopping estimate of the 90th percentile: with 99 % confidence the true one is no higher.

    Source: MLPerf inference rules, appendix on early stopping (p = 0.90, c = 0.99, d = 0). None below 64 runs,
    where no such statement can be made.
    """
    runs = np.sort(_flatten(blocks))
    discards = early_stopping_discards(len(runs), 0.90)
    if discards is None:
        return None
    pessimistic = float(runs[len(runs) - 1 - discards])
    return Estimate(pessimistic, float(np.percentile(runs, 90)), pessimistic)


def early_stopping_discards(runs: int, percentile: float, confidence: float = 0.99) -> int | None:
    """How many of the slowest of `runs` may be set aside before taking the maximum as `percentile`.

    With t over-latency runs allowed, P(Binomial(runs, 1 - percentile) <= t) must not exceed 1 - confidence;
    the t - 1 slowest are discarded. None when not even t = 1 passes: too few runs.
    """
    miss = 1.0 - percentile
    cumulative = 0.0
    allowed = 0
    for slow in range(runs + 1):
        log_term = math.lgamma(runs + 1) - math.lgamma(slow + 1) - math.lgamma(runs - slow + 1)
        cumulative += math.exp(log_term + slow * math.log(miss) + (runs - slow) * math.log(percentile))
        if cumulative > 1.0 - confidence:
            break
        allowed = slow
    return allowed - 1 if allowed >= 1 else None


def _flatten(blocks: Blocks) -> Floats:
    return np.concatenate([np.asarray(block, dtype=np.float64) for process in blocks for block in process])


def _resample(blocks: Blocks, seed: int) -> Floats:
    """RESAMPLES x runs: processes drawn with replacement, then blocks inside each.

    The seed fixes the draw, so that a ratio's two halves draw the same neighbours and a figure is the same
    whenever it is derived again. A time limit can leave processes with unlike numbers of blocks; the draw then
    takes as many as the shortest has.
    """
    count = min(len(process) for process in blocks)
    length = min(len(block) for process in blocks for block in process)
    runs = np.asarray([[block[:length] for block in process[:count]] for process in blocks], dtype=np.float64)
    generator = np.random.default_rng(seed)
    processes = generator.integers(len(runs), size=(RESAMPLES, len(runs), 1))
    inside = generator.integers(count, size=(RESAMPLES, len(runs), count))
    if len(runs) * count < MIN_BLOCKS:
        within = generator.integers(length, size=(RESAMPLES, len(runs), count, length))
        return runs[processes[..., None], inside[..., None], within].reshape(RESAMPLES, -1)
    return runs[processes, inside].reshape(RESAMPLES, -1)


def _interval(point: float, samples: Floats) -> Estimate:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(point, min(point, float(low)), max(point, float(high)))
