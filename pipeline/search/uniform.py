"""Uniform: every group at the same fraction, the largest that the budget allows. It is found by bisection."""

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, Problem

__all__ = ["bisect", "uniform"]


def uniform(problem: Problem) -> None:
    """Simplest baseline: one number for the whole network."""
    bisect(problem, problem.trials)


def bisect(problem: Problem, steps: int) -> float:
    """The largest feasible fraction after `steps` trials, or as soon as there is no new plan in between.

    Latency grows with width, apart from noise and steps. So a fraction that was found feasible stays the lower end.
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
