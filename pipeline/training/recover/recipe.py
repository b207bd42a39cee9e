"""Recipe: optimizer, rate, batch size and variation of a training from few pictures, found by short trials on these pictures."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.training.settings import FinetuneSettings

__all__ = ["Recipe", "best_recipe", "first_recipe"]

Optimizer = Literal["SGD", "AdamW"]

RATES: dict[Optimizer, tuple[float, ...]] = {
    "SGD": (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005),
    "AdamW": (0.01, 0.003, 0.001, 0.0003, 0.0001),
}
"""Peak rates to choose from, the highest first."""
FIRST_RATES: dict[Optimizer, float] = {"SGD": 0.02, "AdamW": 0.003}
BATCHES = (16, 32, 64)
FIRST_BATCH = 32


@dataclass(frozen=True)
class Recipe:
    """How a round of training goes."""

    optimizer: Optimizer
    rate: float
    """Peak learning rate."""
    batch_size: int
    strong: bool
    """Whether the pictures are varied strongly (`augment.py`), or only as their preprocessing declares."""

    def __str__(self) -> str:
        variation = "strong variation" if self.strong else "the declared variation"
        return f"{self.optimizer}, peak rate {self.rate:g}, batch size {self.batch_size}, {variation}"


def first_recipe(settings: FinetuneSettings, pictures: int) -> Recipe:
    """Return the recipe that is tried first. A named rate is one of SGD, as with many pictures. The batch is at most half of the
    pictures, and at least two.
    """
    size = settings.batch_size or min(FIRST_BATCH, max(pictures // 2, 2))
    if settings.learning_rate is not None:
        return Recipe("SGD", settings.learning_rate, size, strong=False)
    return Recipe("AdamW", FIRST_RATES["AdamW"], size, strong=False)


def best_recipe(
    trial: Callable[[Recipe], float], settings: FinetuneSettings, pictures: int, goes_on: Callable[[], bool]
) -> tuple[Recipe, int]:
    """Return the recipe whose trial had the lowest loss, and the number of trials.

    `trial` maps a recipe to the validation loss after a short training, which always starts from the same network. First the rate
    is moved down and up as long as that helps, then the variation, the batch size and the optimizer are changed. What `settings`
    fix is not changed, and with a fixed rate there are no trials. `goes_on` is asked before each trial after the first, so that
    trials can be ended by the clock.
    """
    first = first_recipe(settings, pictures)
    if settings.learning_rate is not None:
        return first, 0
    losses = {first: trial(first)}

    def tried(recipe: Recipe) -> float:
        if recipe not in losses:
            losses[recipe] = trial(recipe) if goes_on() else math.inf
        return losses[recipe]

    def best() -> Recipe:
        return min(losses, key=losses.__getitem__)

    _climb(tried, first)
    tried(replace(best(), strong=not best().strong))
    if settings.batch_size is None:
        for size in BATCHES:
            if size <= pictures // 2:
                tried(replace(best(), batch_size=size))
    _climb(tried, replace(best(), optimizer="SGD", rate=FIRST_RATES["SGD"]))
    return best(), sum(math.isfinite(loss) for loss in losses.values())


def _climb(tried: Callable[[Recipe], float], first: Recipe) -> None:
    """Try lower rates as long as each is better than the one before, and higher ones if no lower one was better."""
    start = tried(first)
    for rates in _both_ways(RATES[first.optimizer], first.rate):
        before = start
        for rate in rates:
            loss = tried(replace(first, rate=rate))
            if loss >= before:
                break
            before = loss
        if before < start:
            return


def _both_ways(rates: tuple[float, ...], first: float) -> Iterator[list[float]]:
    yield [rate for rate in rates if rate < first]
    yield [rate for rate in reversed(rates) if rate > first]
