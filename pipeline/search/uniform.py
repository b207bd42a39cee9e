"""Uniform: every group at the same fraction, the largest that the budget allows, found by bisection."""

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, Problem

__all__ = ["bisect", "uniform"]


def uniform(problem: Problem) -> None:
    """The plainest baseline: one number for the whole network."""
    bisect(problem, problem.trials)


def bisect(problem: Problem, steps: int) -> float:
    """The largest feasible fraction after `steps` trials, or as soon as no new plan lies between.

    Latency grows with width but for noise and cliffs, so a fraction once found feasible is kept as the lower end.
    """
    low, high = 0.0, 1.0
    seen: dict[ChannelPlan, Evaluation] = {}
    while len(seen) < steps and high - low > 1e-3:
        middle = (low + high) / 2
        plan = problem.space.uniform(middle)
        if plan not in seen:
            seen[plan] = problem.evaluate(plan)
        if seen[plan].feasible:
            low = middle
        else:
            high = middle
    return low
