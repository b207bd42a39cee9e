"""Paired difference: how much lower one network scores than another on the same images, with a 95 % confidence interval."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.statistics import LEVEL, Estimate
from pipeline.errors import ModelError

__all__ = [
    "HitCounts",
    "PairedDrop",
    "Scores",
    "apart_on",
    "images_to_decide",
    "images_to_show_agreement",
    "images_to_show_no_drop",
    "newcombe",
    "no_drop",
    "paired_drop",
    "wilson",
]

Floats = NDArray[np.float64]

POINTS = 100.0
"""A share of 1, in points."""
RESAMPLES = 2000
MIN_IMAGES = 20
"""With fewer images, the coverage of the percentile bootstrap is much lower than its nominal level."""
MOST_IMAGES = 10_000_000
"""Largest number of test images that is reported."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The score of one network on test data. Higher is better."""

    value: float
    """In points; for classification the accuracy in percent."""
    each: Floats | None = None
    """(images,) one value per image, in points, with the mean `value`; None where only the total is known."""


@dataclass(frozen=True)
class HitCounts:
    """The numbers of images that both networks, only one of them, or neither classify correctly. Real numbers are allowed."""

    both: float
    only_dense: float
    only_after: float
    neither: float

    @property
    def images(self) -> float:
        """Total number of images."""
        return self.both + self.only_dense + self.only_after + self.neither

    def scaled(self, factor: float) -> "HitCounts":
        """Return the counts for `factor` times as many images with the same proportions."""
        return HitCounts(self.both * factor, self.only_dense * factor, self.only_after * factor, self.neither * factor)


@dataclass(frozen=True)
class PairedDrop:
    """How many points the second network scores lower than the first on the same images."""

    images: int
    estimate: Estimate
    """In points, with the 95 % confidence interval; negative where the second network is better."""
    method: Literal["newcombe", "bootstrap"]
    hits: HitCounts | None = None
    """Counts from which Newcombe's interval is computed; None for the bootstrap."""


def paired_drop(dense: Scores, after: Scores) -> PairedDrop | None:
    """Compute the drop from `dense` to `after` with its interval; None where there is no basis for an interval.

    If every value is 0 or 100 (wrong or right), the interval is Newcombe's. Otherwise it is the percentile bootstrap over images,
    which needs at least MIN_IMAGES images whose differences are not all equal. Raises ModelError when the two do not have one
    finite value for each of the same images.
    """
    if dense.each is None or after.each is None:
        return None
    if dense.each.shape != after.each.shape or dense.each.ndim != 1 or not len(dense.each):
        raise ModelError(
            f"the task's values per test image have the shapes {dense.each.shape} for the dense network and {after.each.shape} "
            "for the compressed one; return one number per image, for the same images in the same order"
        )
    if not (np.isfinite(dense.each).all() and np.isfinite(after.each).all()):
        raise ModelError("the task's values per test image are not all finite; return one finite number per image")
    if np.isin(np.concatenate([dense.each, after.each]), (0.0, POINTS)).all():
        first, second = dense.each > 0, after.each > 0
        counts = (first & second, first & ~second, ~first & second, ~first & ~second)
        hits = HitCounts(*(int(each.sum()) for each in counts))
        return PairedDrop(len(first), newcombe(hits), "newcombe", hits)
    return _bootstrapped(dense.each - after.each)


def newcombe(hits: HitCounts) -> Estimate:
    """Compute the drop in points, with the 95 % confidence interval for a difference of paired proportions.

    Source: Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data, 1998,
    method 10: Wilson's intervals of both proportions, combined with their correlation, which is corrected for continuity.

    >>> newcombe(HitCounts(59, 6, 16, 80)).value  # 65 of 161 right, then 75
    -6.211180124223603
    """
    images = hits.images
    first, second = (hits.both + hits.only_dense) / images, (hits.both + hits.only_after) / images
    (low_1, high_1), (low_2, high_2) = wilson(first, images), wilson(second, images)
    product = hits.both * hits.neither - hits.only_dense * hits.only_after
    corrected = max(product - images / 2, 0.0) if product > 0 else product
    scale = math.sqrt(first * (1 - first) * second * (1 - second)) * images**2
    correlation = corrected / scale if scale else 0.0

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    drop = first - second
    low = max(-1.0, drop - distance(first - low_1, high_2 - second))
    high = min(1.0, drop + distance(second - low_2, high_1 - first))
    return Estimate(POINTS * drop, POINTS * low, POINTS * high)


def images_to_decide(drop: PairedDrop, limit: float) -> int | None:
    """Return about how many test images decide whether the drop exceeds `limit` points, if the proportions stay the same.

    The number is rounded up to two digits. It is None when MOST_IMAGES would not decide.
    """
    value = drop.estimate.value

    def decided(images: int) -> bool:
        if drop.hits:
            interval = newcombe(drop.hits.scaled(images / drop.images))
        else:  # the interval of a mean narrows with the square root
            narrower = math.sqrt(drop.images / images)
            interval = Estimate(
                value, value - narrower * (value - drop.estimate.low), value + narrower * (drop.estimate.high - value)
            )
        return interval.high <= limit or interval.low > limit

    return _fewest(decided)


def images_to_show_no_drop(limit: float, disagreement: float, error: float) -> int | None:
    """Return about how many test images show that a network without any loss stays within `limit` points.

    `disagreement`: the share of images that only one of the networks classifies correctly, half of them each. `error`: the share
    that the dense network classifies wrongly. The number is None when MOST_IMAGES do not suffice.
    """
    return _fewest(lambda images: newcombe(no_drop(images, disagreement, error)).high <= limit)


def images_to_show_agreement(limit: float, disagreement: float) -> int | None:
    """Return about how many test images show that the agreement drops by at most `limit` points.

    `disagreement`: the share of images that the two networks answer differently. The number is None when MOST_IMAGES do not
    suffice.

    >>> images_to_show_agreement(2.0, 0.01)
    760
    """
    return _fewest(lambda images: newcombe(apart_on(images, disagreement)).high <= limit)


def apart_on(images: int, disagreement: float) -> HitCounts:
    """Return the counts of two networks where the dense one's answers are the labels; see `images_to_show_agreement`."""
    return HitCounts(1 - disagreement, disagreement, 0, 0).scaled(images)


def no_drop(images: int, disagreement: float, error: float) -> HitCounts:
    """Return the counts of two equally good networks; see `images_to_show_no_drop`."""
    apart = disagreement / 2
    return HitCounts(1 - error - apart, apart, apart, max(0.0, error - apart)).scaled(images)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number of images that is `enough`, rounded up to two digits. Larger numbers must be enough too."""
    few, many = 0, 1
    while not enough(many):
        if many >= MOST_IMAGES:
            return None
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    digit: int = 10 ** max(0, len(str(many)) - 2)
    return -(-many // digit) * digit


def wilson(share: float, images: float) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of one proportion. Source: Wilson, 1927.

    >>> wilson(0.9, 10)
    (0.5958499732047615, 0.9821237869049271)
    """
    square = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    middle = (share + square / (2 * images)) / (1 + square / images)
    half = math.sqrt(square * (share * (1 - share) / images + square / (4 * images**2))) / (1 + square / images)
    return middle - half, middle + half


def _bootstrapped(drops: Floats) -> PairedDrop | None:
    if len(drops) < MIN_IMAGES or drops.min() == drops.max():
        return None
    generator = np.random.default_rng(0)  # the same images give the same interval
    means = [float(drops[generator.integers(len(drops), size=len(drops))].mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = float(drops.mean())
    return PairedDrop(len(drops), Estimate(value, min(value, float(low)), max(value, float(high))), "bootstrap")
