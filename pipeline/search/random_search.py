"""Random: every group gets its own random fraction. Every other search has to beat this one."""

import numpy as np

from pipeline.search.problem import Problem

__all__ = ["random_search"]

SPREAD = 0.25
MOST_DROPPED = 0.5
"""Largest probability with which a block is dropped."""


def random_search(problem: Problem) -> None:
    """Draw a level for each trial uniformly from [0, 1], and a fraction around it for each group.

    Blocks are dropped with a probability that is drawn for each trial too.

    Without the common level, all trials of a deep network would have about the same size, whatever the budget.
    """
    generator = np.random.default_rng(problem.seed)
    blocks = np.asarray([choice.is_block for choice in problem.space.choices])
    for _ in range(problem.trials):
        level = generator.random()
        fractions = level + SPREAD * generator.standard_normal(len(problem.space.choices))
        fractions = np.clip(fractions, 0.0, 1.0)
        if blocks.any():
            fractions[blocks] = generator.random(len(fractions))[blocks] >= MOST_DROPPED * generator.random()
        problem.evaluate(problem.space.plan(fractions.tolist()))
