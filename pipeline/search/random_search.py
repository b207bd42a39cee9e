"""Random: every group gets its own random fraction. Every other search has to beat this one."""

import numpy as np
from numpy.typing import NDArray

from pipeline.search.ask_tell import Questions, SearchState, ask_and_tell
from pipeline.search.problem import SearchSpace

__all__ = ["random_search", "without_random_blocks"]

SPREAD = 0.25
MOST_DROPPED = 0.5
"""Largest probability with which a block is dropped."""


@ask_and_tell
def random_search(state: SearchState) -> Questions[None]:
    """Draw a level for each trial uniformly from [0, 1], and a fraction around it for each group.

    Blocks are dropped with a probability that is drawn for each trial too.

    Without the common level, all trials of a deep network would have about the same size, whatever the budget.
    """
    space = state.space
    generator = np.random.default_rng(state.problem.seed)
    for _ in range(state.problem.trials):
        level = generator.random()
        fractions = level + SPREAD * generator.standard_normal(len(space.choices))
        fractions = without_random_blocks(space, np.clip(fractions, 0.0, 1.0), generator)
        yield space.plan(fractions.tolist())


def without_random_blocks(
    space: SearchSpace, fractions: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return `fractions`, (choices,), with 1 for each block that is kept and 0 for each that is dropped at random.

    Each is dropped with the same probability, which is drawn too. Without blocks, nothing is drawn.
    """
    blocks = np.asarray([choice.is_block for choice in space.choices], dtype=bool)
    if not blocks.any():
        return fractions
    kept = generator.random(len(fractions)) >= MOST_DROPPED * generator.random()
    return np.where(blocks, kept, fractions)
