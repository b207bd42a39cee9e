"""Uniform: every group at the same fraction, the largest that the budget allows. It is found by bisection."""

from collections.abc import Callable

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, Problem

__all__ = ["bisect", "uniform"]


def uniform(problem: Problem) -> None:
    """Simplest baseline: one number for the whole network.

    If blocks can be dropped, half of the trials go to a second row of plans: the same share of the channels and of the blocks.
    """
    space, trials = problem.space, problem.trials
    if space.has_blocks and trials > 1:
        bisect(problem, trials // 2, lambda share: space.uniform(share, share))
        trials -= trials // 2
    bisect(problem, trials)


def bisect(problem: Problem, steps: int, plan_of: Callable[[float], ChannelPlan] | None = None) -> float:
    """The largest feasible fraction after `steps` trials, or as soon as there is no new plan in between.

    `plan_of` returns the plan of a fraction; by default, the uniform plan with all blocks.

    Latency grows with width, apart from noise and steps. So a fraction that was found feasible stays the lower end.
    """
    low, high = 0.0, 1.0
    seen: dict[ChannelPlan, Evaluation] = {}
    while len(seen) < steps and high - low > 1e-3:
        middle = (low + high) / 2
        plan = (plan_of or problem.space.uniform)(middle)
        if plan not in seen:
            seen[plan] = problem.evaluate(plan)
        if seen[plan].feasible:
            low = middle
        else:
            high = middle
    return low
