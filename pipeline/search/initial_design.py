"""Initial design: plans that show how sensitive score and cost are to each group, before an agent starts to learn."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import SearchSpace

__all__ = ["design"]

SPREAD = 0.35
DROPPED = 0.15
"""Share of the plans in which a block is dropped that `start` keeps, or the other way round."""


def design(space: SearchSpace, start: NDArray[np.float64], trials: int, seed: int | Sequence[int]) -> Iterator[ChannelPlan]:
    """Yield `trials` plans around the fractions `start`, (choices,): a Latin hypercube over the widths of the groups.

    A block is kept or dropped as in `start`, except in a share of the plans.

    Varying one group at a time would take as many trials per group as this takes for all groups.
    """
    generator = np.random.default_rng(seed)
    groups = len(space.choices)
    strata = np.stack([generator.permutation(trials) for _ in range(groups)], axis=1)
    places = (strata + 0.5) / max(trials, 1)
    low, high = np.maximum(0.0, start - SPREAD), np.minimum(1.0, start + SPREAD)
    blocks = np.asarray([choice.is_block for choice in space.choices])
    for row in places:
        fractions = low + (high - low) * row
        fractions[blocks] = (row[blocks] >= DROPPED) == (start[blocks] >= 0.5)
        yield space.plan(fractions.tolist())
