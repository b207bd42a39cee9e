"""Statistics of latencies: the median, MLPerf's p90 and bootstrap intervals, as pure functions of the raw runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FEW_PROCESSES",
    "LEVEL",
    "MEDIAN",
    "PERCENTILE_90",
    "Blocks",
    "Estimate",
    "Statistic",
    "allow_drift",
    "disagreement",
    "early_stopping_discards",
    "estimate",
    "noise",
    "p90_estimate",
    "process_ratios",
    "ratio_estimate",
    "student",
]

Blocks = tuple[tuple[tuple[float, ...], ...], ...]
"""Latencies as processes x blocks x runs; NaN for a run that is no sample."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Statistic:
    """A statistic of many runs in several processes."""

    of_runs: Callable[[Floats], Floats]
    """Computes the statistic along the last axis, which holds numbers only."""
    quantile: float
    """The same statistic as a quantile, the share of the runs that lie below it."""
    of_each_process: bool
    """True: the mean of the statistics of all processes. False: the statistic of all runs together."""


MEDIAN = Statistic(lambda runs: np.asarray(np.median(runs, axis=-1)), 0.5, of_each_process=True)
"""The median run of a process, averaged over processes.

The speed of a process depends on where the system places its memory and its threads, and often there are only two cases. The
median of all runs together then jumps between the two cases. The average over processes does not.
Source: Kalibera and Jones, Rigorous benchmarking in reasonable time, 2013: average over the level that varies.
"""
PERCENTILE_90 = Statistic(lambda runs: np.asarray(np.percentile(runs, 90, axis=-1)), 0.9, of_each_process=False)
"""The 90th percentile of all runs together, because a slow process is part of the tail."""

RESAMPLES = 400
LEVEL = 0.95
"""Confidence level of every interval."""
FEW_PROCESSES = 3
"""Least number of processes whose spread gives a usable interval."""
DRIFT = 0.008
"""Standard deviation of a ratio between minutes of a quiet machine with one thread, as a share of the ratio.
docs/benchmarks/probe.md says how it was measured."""
DISAGREEMENT = 0.10
"""Processes that differ by more than this are reported."""
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)
"""The 97.5th percentile of Student's t distribution with 1, 2, ... degrees of freedom. Above, a series is exact to 0.001."""
NORMAL = 1.959964
"""The 97.5th percentile of the normal distribution."""
MIN_BLOCKS = 16
"""With fewer blocks, runs are resampled as well; otherwise a single block would look exact."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """Return a counted figure, which has an interval of zero width."""
        return cls(value, value, value)

    def scaled(self, factor: float) -> "Estimate":
        """Return the figure and its interval times `factor`, for example in another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


def noise(blocks: Blocks) -> float:
    """Return the median absolute deviation over the median within a process, for the process where it is largest."""
    worst = 0.0
    for process in blocks:
        runs = _flatten((process,))
        middle = float(np.median(runs))
        worst = max(worst, float(np.median(np.abs(runs - middle))) / middle)
    return worst


def estimate(blocks: Blocks, statistic: Statistic) -> Estimate:
    """Compute `statistic` of all runs, with an interval. See `ratio_estimate`."""
    found = _interval(_point(blocks, statistic), _samples(blocks, statistic))
    return _widened(found, _without_each(blocks, statistic), FEW_PROCESSES)


def ratio_estimate(blocks: Blocks, reference: Blocks, statistic: Statistic) -> Estimate | None:
    """Compute `statistic` of the runs over that of the reference, with a 95 % interval.

    It is Student's t over processes, because processes differ more than the runs inside them. The standard error is the
    jackknife's, which leaves out one process after the other. Where the processes agree by chance, the interval is at least
    that of the noise inside them, a bootstrap of their blocks. For a statistic of all runs together, processes are drawn as well,
    because Student's t is only approximate there. Neighbours are resampled together, so that drift cancels.

    With two processes, Student's t would be 12.7. It is used only where the medians of the two disagree. Otherwise the interval
    is a bootstrap over processes and blocks, which guides a search but is too narrow for a verdict.
    """
    if not reference or not all(reference):
        return None
    point = _point(blocks, statistic) / _point(reference, statistic)
    found = _interval(point, _samples(blocks, statistic) / _samples(reference, statistic))
    left_out = _without_each(blocks, statistic) / _without_each(reference, statistic)
    disagree = statistic.of_each_process and disagreement(process_ratios(blocks, reference)) > DISAGREEMENT
    return _widened(found, left_out, 2 if disagree else FEW_PROCESSES)


def allow_drift(ratio: Estimate) -> Estimate:
    """Return the ratio of two latencies with an interval that holds for other minutes, too.

    The processes of one measurement run within seconds of each other, so their spread does not show how a ratio changes from
    minute to minute. Both variances are added.
    """
    drift = NORMAL * DRIFT * ratio.value
    low, high = math.hypot(ratio.value - ratio.low, drift), math.hypot(ratio.high - ratio.value, drift)
    return Estimate(ratio.value, max(0.0, ratio.value - low), ratio.value + high)


def student(degrees: int) -> float:
    """Return the 97.5th percentile of Student's t distribution. Source: Abramowitz and Stegun, 1964, 26.7.5."""
    if degrees <= len(STUDENT):
        return STUDENT[degrees - 1]
    z = NORMAL
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / float(degrees) ** power for power, term in enumerate(terms, start=1))


def process_ratios(blocks: Blocks, reference: Blocks) -> tuple[float, ...]:
    """Return the median of each process, divided by that of its reference where there is one."""
    medians = [_point((process,), MEDIAN) for process in blocks]
    if not reference or not all(reference):
        return tuple(medians)
    return tuple(median / _point((process,), MEDIAN) for median, process in zip(medians, reference, strict=True))


def disagreement(ratios: Sequence[float]) -> float:
    """Return how far the largest ratio is above the smallest, as a share of the smallest."""
    return max(ratios) / min(ratios) - 1


def p90_estimate(blocks: Blocks) -> Estimate | None:
    """Compute the early-stopping estimate of the 90th percentile. With 99 % confidence the true value is no higher.

    Source: MLPerf inference rules, appendix on early stopping (p = 0.90, c = 0.99, d = 0). The result is None below 64 runs,
    where the rules allow no such statement.
    """
    runs = np.sort(_flatten(blocks))
    discards = early_stopping_discards(len(runs), 0.90)
    if discards is None:
        return None
    pessimistic = float(runs[len(runs) - 1 - discards])
    return Estimate(pessimistic, float(np.percentile(runs, 90)), pessimistic)


def early_stopping_discards(runs: int, percentile: float, confidence: float = 0.99) -> int | None:
    """Return how many of the slowest of `runs` may be discarded before taking the maximum as `percentile`.

    With t over-latency runs allowed, P(Binomial(runs, 1 - percentile) <= t) must not exceed 1 - confidence;
    the t - 1 slowest are discarded. The result is None when even t = 1 fails because there are too few runs.
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
    """Return all runs that are samples."""
    runs: Floats = np.concatenate([np.asarray(block, dtype=np.float64) for process in blocks for block in process])
    return runs[~np.isnan(runs)]


def _along(statistic: Statistic, draws: Floats) -> Floats:
    """Compute `statistic` along the last axis over the runs that are samples; NaN where there are none."""
    if not np.isnan(draws).any():
        return np.asarray(statistic.of_runs(draws))
    ordered = np.sort(draws, axis=-1)  # NaN is sorted last
    last = np.maximum((~np.isnan(draws)).sum(axis=-1, keepdims=True) - 1, 0)
    below, share = np.divmod(statistic.quantile * last, 1)
    low, high = (np.take_along_axis(ordered, index.astype(np.intp), -1) for index in (below, np.minimum(below + 1, last)))
    return np.asarray((low + share * (high - low))[..., 0])


def _point(blocks: Blocks, statistic: Statistic) -> float:
    if not statistic.of_each_process:
        return float(statistic.of_runs(_flatten(blocks)))
    return float(np.mean([statistic.of_runs(_flatten((process,))) for process in blocks]))


def _samples(blocks: Blocks, statistic: Statistic) -> Floats:
    """Compute `statistic` of RESAMPLES bootstrap draws."""
    drawn = _resample(blocks, seed=0, processes=len(blocks) < FEW_PROCESSES or not statistic.of_each_process)
    if not statistic.of_each_process:
        return _along(statistic, drawn.reshape(RESAMPLES, -1))
    return np.asarray(_along(statistic, drawn).mean(axis=-1))


def _resample(blocks: Blocks, seed: int, *, processes: bool) -> Floats:
    """Draw RESAMPLES x processes x runs: blocks inside each process. With `processes`, the processes are drawn first.

    The seed fixes the draw, so that both halves of a ratio draw the same neighbours and a figure is the same
    whenever it is derived again. A time limit can leave processes with different numbers of blocks; the draw
    then takes as many blocks as the shortest process has.
    """
    count = min(len(process) for process in blocks)
    length = min(len(block) for process in blocks for block in process)
    runs = np.asarray([[block[:length] for block in process[:count]] for process in blocks], dtype=np.float64)
    generator = np.random.default_rng(seed)
    drawn_processes = generator.integers(len(runs), size=(RESAMPLES, len(runs), 1))
    chosen = drawn_processes if processes else np.arange(len(runs))[None, :, None]
    inside = generator.integers(count, size=(RESAMPLES, len(runs), count))
    if len(runs) * count < MIN_BLOCKS:
        within = generator.integers(length, size=(RESAMPLES, len(runs), count, length))
        drawn = runs[chosen[..., None], inside[..., None], within]
    else:
        drawn = runs[chosen, inside]
    return drawn.reshape(RESAMPLES, len(runs), -1)


def _without_each(blocks: Blocks, statistic: Statistic) -> Floats:
    """Compute `statistic` of all processes but one, for each of them; empty for a single process."""
    count = len(blocks)
    if count < 2:
        return np.empty(0)
    if statistic.of_each_process:
        each = np.asarray([_point((process,), statistic) for process in blocks])
        return np.asarray((each.sum() - each) / (count - 1))
    return np.asarray([_point(blocks[:index] + blocks[index + 1 :], statistic) for index in range(count)])


def _widened(found: Estimate, left_out: Floats, least: int) -> Estimate:
    """Return `found` with an interval that also holds Student's t, for at least `least` processes.

    `left_out`: the figure without each of the processes.
    """
    count = len(left_out)
    if count < least:
        return found
    reach = student(count - 1) * (count - 1) / math.sqrt(count) * float(np.std(left_out, ddof=1))
    return Estimate(found.value, max(0.0, min(found.low, found.value - reach)), max(found.high, found.value + reach))


def _interval(point: float, samples: Floats) -> Estimate:
    low, high = np.quantile(samples[~np.isnan(samples)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(point, min(point, float(low)), max(point, float(high)))
