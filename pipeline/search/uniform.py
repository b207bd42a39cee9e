"""Uniform: every group at the same fraction, the largest that the budget allows. It is found by bisection."""

from collections import deque
from collections.abc import Callable

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import Questions, SearchState, answered, ask_and_tell, wait_for
from pipeline.search.problem import Evaluation, Problem

__all__ = ["bisect", "bisection", "uniform"]


@ask_and_tell
def uniform(state: SearchState) -> Questions[None]:
    """Simplest baseline: one number for the whole network.

    If blocks can be dropped, half of the trials go to a second row of plans: the same share of the channels and of the blocks.
    """
    space, trials = state.space, state.problem.trials
    if space.has_blocks and trials > 1:
        yield from bisection(state, trials // 2, lambda share: space.uniform(share, share))
        trials -= trials // 2
    yield from bisection(state, trials)


def bisect(problem: Problem, steps: int, plan_of: Callable[[float], ChannelPlan] | None = None) -> float:
    """Run `bisection` with `problem.evaluate`."""
    return answered(problem, bisection, steps, plan_of)


def bisection(
    state: SearchState,
    steps: int,
    plan_of: Callable[[float], ChannelPlan] | None = None,
    meanwhile: deque[ChannelPlan] | None = None,
) -> Questions[float]:
    """The largest feasible fraction after `steps` trials, or as soon as there is no new plan in between.

    `plan_of` returns the plan of a fraction; by default, the uniform plan with all blocks. If n plans are wanted at once, they
    divide the interval into n + 1 equal parts, and plans of `meanwhile` are asked until these are answered.

    A plan that a search for another budget asked for is not asked again.

    Latency grows with width, apart from noise and steps. So a fraction that was found feasible stays the lower end.
    """
    low, high = 0.0, 1.0
    seen: dict[ChannelPlan, Evaluation] = {}
    while len(seen) < steps and high - low > 1e-3:
        parts = min(state.wanted, steps - len(seen)) + 1
        between = [(low * (parts - part) + high * part) / parts for part in range(1, parts)]
        fractions = {fraction: (plan_of or state.space.uniform)(fraction) for fraction in between}
        seen |= {answer.plan: answer for answer in state.others if answer.plan in fractions.values()}
        new = [plan for plan in dict.fromkeys(fractions.values()) if plan not in seen]
        if new:
            first = len(state.answers) + len(state.pending)
            yield from new
            yield from wait_for(state, first + len(new), meanwhile if meanwhile is not None else deque())
            seen |= {answer.plan: answer for answer in state.answers[first : first + len(new)]}
        low = max((fraction for fraction, plan in fractions.items() if seen[plan].feasible), default=low)
        high = min((fraction for fraction, plan in fractions.items() if fraction > low and not seen[plan].feasible), default=high)
    return low
