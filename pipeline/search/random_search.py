"""Random: every group gets its own random fraction. Every other search has to beat this one."""

import numpy as np

from pipeline.search.problem import Problem

__all__ = ["random_search"]

SPREAD = 0.25


def random_search(problem: Problem) -> None:
    """Draw a level for each trial uniformly from [0, 1], and a fraction around it for each group.

    Without the common level, all trials of a deep network would have about the same size, whatever the budget.
    """
    generator = np.random.default_rng(problem.seed)
    for _ in range(problem.trials):
        level = generator.random()
        fractions = level + SPREAD * generator.standard_normal(len(problem.space.choices))
        problem.evaluate(problem.space.plan(np.clip(fractions, 0.0, 1.0).tolist()))
