"""Pooled: one ratio from the ratios of several boards of one type, with the board as a random effect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.statistics import NORMAL, Estimate, student

__all__ = ["Pooled", "highest", "pooled"]

LEAST_ERROR = 1e-6
"""Smallest standard error of a log ratio, so that a board with equal runs does not get an infinite weight."""


@dataclass(frozen=True)
class Pooled:
    """The mean over boards, and how far boards differ."""

    ratio: Estimate
    spread: float
    """Standard deviation between boards of the log ratio, without the error of each measurement. About a share of the ratio."""


def pooled(ratios: Sequence[Estimate]) -> Pooled:
    """Pool the ratio of each board, at least one, each with its 95 % interval, above 0.

    With y = log ratio of a board, s = its standard error (the interval on the log scale, over 2 x 1.96) and k boards:

        w = 1 / s^2,  Q = sum w (y - mean_w y)^2,  tau^2 = max(0, (Q - (k - 1)) / (sum w - sum w^2 / sum w))
        v = 1 / (s^2 + tau^2),  mu = sum v y / sum v,  q = max(1, sum v (y - mu)^2 / (k - 1))
        interval: exp(mu +- t_(k-1) sqrt(q / sum v))

    Sources: DerSimonian and Laird, Controlled Clinical Trials 1986, for tau; Hartung and Knapp, Statistics in Medicine 2001, for
    q and Student's t; Rover, Knapp and Friede, BMC Medical Research Methodology 2015, for q >= 1.

    Two boards do not show how far boards differ: t would be 12.7. Their interval contains the intervals of both instead, and
    holds for these two boards.
    """
    if len(ratios) == 1:
        return Pooled(ratios[0], 0.0)
    y = [math.log(ratio.value) for ratio in ratios]
    s = [max((math.log(ratio.high) - math.log(max(ratio.low, 1e-9))) / (2 * NORMAL), LEAST_ERROR) for ratio in ratios]
    w = [1 / error**2 for error in s]
    rest = sum(w) - sum(each**2 for each in w) / sum(w)
    variance = max(0.0, (_squares(w, y) - (len(y) - 1)) / rest)
    v = [1 / (error**2 + variance) for error in s]
    mu = _mean(v, y)
    if len(ratios) == 2:
        found = Estimate(math.exp(mu), min(ratio.low for ratio in ratios), max(ratio.high for ratio in ratios))
    else:
        reach = student(len(y) - 1) * math.sqrt(max(1.0, _squares(v, y) / (len(y) - 1)) / sum(v))
        found = Estimate(math.exp(mu), math.exp(mu - reach), math.exp(mu + reach))
    return Pooled(found, math.sqrt(variance))


def highest(figures: Sequence[Estimate]) -> Estimate:
    """The figure that is within a limit only if it is so on every board: the largest value, and the largest ends of intervals."""
    return Estimate(*(max(each) for each in zip(*((f.value, f.low, f.high) for f in figures), strict=True)))


def _mean(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


def _squares(weights: Sequence[float], values: Sequence[float]) -> float:
    mean = _mean(weights, values)
    return sum(weight * (value - mean) ** 2 for weight, value in zip(weights, values, strict=True))
