"""Recipe: optimizer, rate, batch size and variation of a training from few pictures, found by short trials on them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.training.recover.methods import MethodName
from pipeline.training.settings import FinetuneSettings

__all__ = ["Recipe", "best_recipe", "first_batch_size", "first_recipe"]

Optimizer = Literal["SGD", "AdamW"]

RATES: dict[Optimizer, tuple[float, ...]] = {
    "SGD": (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005),
    "AdamW": (0.01, 0.003, 0.001, 0.0003, 0.0001),
}
"""Peak rates to choose from, the highest first."""
FIRST_RATES: dict[Optimizer, float] = {"SGD": 0.005, "AdamW": 0.001}
FIRST_OPTIMIZERS: dict[MethodName, Optimizer] = {"distil": "SGD", "mimic": "AdamW", "blocks": "AdamW"}
"""The better optimizer of each method; see docs/decisions/0026-few-pictures.md."""
BATCHES = (16, 32, 64)
FIRST_BATCH = 32


@dataclass(frozen=True)
class Recipe:
    """How a round of training goes."""

    method: MethodName
    optimizer: Optimizer
    rate: float
    """Peak learning rate."""
    batch_size: int
    strong: bool = False
    """Whether the pictures are varied strongly (`augment.py`), or only as their preprocessing declares."""
    fixed: bool = False
    """Whether BatchNorm layers keep their statistics during training, as the dense network's do. Otherwise they use those of each
    batch, which differ from the dense network's if the batch is small. Trials do not compare the two; see `batch_statistics.py`.
    """

    def __str__(self) -> str:
        variation = "strong variation" if self.strong else "declared variation"
        statistics = "fixed statistics" if self.fixed else "statistics of each batch"
        return (
            f"{self.method}, {self.optimizer}, peak rate {self.rate:g}, batch size {self.batch_size}, {variation}, {statistics}"
        )


def first_batch_size(settings: FinetuneSettings, pictures: int) -> int:
    """Return the batch size that is tried first. It is at most half of the pictures, and at least two."""
    return settings.batch_size or min(FIRST_BATCH, max(pictures // 2, 2))


def first_recipe(method: MethodName, settings: FinetuneSettings, pictures: int, *, fixed: bool = False) -> Recipe:
    """Return the recipe of `method` that is tried first, with `fixed` statistics or those of each batch. A named rate is one of
    SGD, as with many pictures.
    """
    size = first_batch_size(settings, pictures)
    if settings.learning_rate is not None:
        return Recipe(method, "SGD", settings.learning_rate, size, fixed=fixed)
    optimizer = FIRST_OPTIMIZERS[method]
    return Recipe(method, optimizer, FIRST_RATES[optimizer], size, fixed=fixed)


def best_recipe(
    trial: Callable[[Recipe], float], first: Recipe, settings: FinetuneSettings, pictures: int, goes_on: Callable[[], bool]
) -> tuple[Recipe, int]:
    """Return the best recipe, and the number of trials.

    `trial` maps a recipe to the validation loss after a short training, which always starts from the same network. From `first`,
    the rate is moved down and up as long as that helps. Then variation, batch size and optimizer of the best recipe are changed.
    What `settings` fix is not changed, and with a named rate there are no trials. `goes_on` is asked before each trial after the
    first, so that the clock can end trials.
    """
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
    other: Optimizer = "SGD" if best().optimizer == "AdamW" else "AdamW"
    _climb(tried, replace(best(), optimizer=other, rate=FIRST_RATES[other]))
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
