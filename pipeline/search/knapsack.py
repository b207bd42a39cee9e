"""Knapsack: measure what each width of each group saves and pays, and solve for the best sum; after HALP (Shen et al.,
arXiv 2110.10811).

Differences from HALP:
 1. what a width saves is measured on the whole network, not read from a table of layers.
 2. what it pays is the change in score, not a Taylor expansion of the loss.
 3. what is chosen are widths of groups, in one go; theirs are single channels, pruned in rounds with fine-tuning between them.
 4. it is solved again after each answer with estimates fitted to all answers, because neither sum is really a sum.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.initial_design import initial_design
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.surrogate import Surrogate, fit
from pipeline.search.uniform import bisect

__all__ = ["KnapsackSettings", "fill", "knapsack"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class KnapsackSettings:
    """How trials are shared out."""

    bisection_trials: int = 6
    design_share: float = 0.3
    bins: int = 1000
    """The budget is spent in this many steps."""
    rounds: int = 12
    """Solutions for each set of estimates, between which the weights of several constraints are corrected."""


def knapsack(problem: Problem, settings: KnapsackSettings | None = None) -> None:
    """Search with `problem.trials` judgements; see `Searcher`."""
    settings = settings or KnapsackSettings()
    answers = list(problem.known)

    def ask(plan: ChannelPlan) -> Evaluation:
        answers.append(problem.evaluate(plan))
        return answers[-1]

    asking = replace(problem, evaluate=ask)
    start = bisect(asking, min(settings.bisection_trials, problem.trials))
    left = problem.trials + len(problem.known) - len(answers)
    initial_design(asking, start, min(left, round(settings.design_share * problem.trials)))
    while len(answers) < problem.trials + len(problem.known):
        known = {answer.plan for answer in answers}
        solved = _solutions(fit(problem.space, answers, additive=True), settings)
        plan = next((plan for plan in solved if plan not in known), None)
        if plan is None:
            return  # nothing new looks better than what was asked
        ask(plan)


def _solutions(model: Surrogate, settings: KnapsackSettings) -> Iterator[ChannelPlan]:
    """Plans within the budget by the estimates, from the highest score down, and last those that come nearest to it."""
    choices = model.space.choices
    values = [score for score, _ in model.tables]
    costs = [violations for _, violations in model.tables]
    constants = np.asarray([curve.constant for curve in model.violations])
    weights = np.ones(len(constants)) / max(len(constants), 1)
    found: dict[ChannelPlan, tuple[bool, float]] = {}
    for _ in range(settings.rounds if len(constants) > 1 else 1):
        filled = fill(values, [cost @ weights for cost in costs], -float(weights @ constants), settings.bins)
        for picks in filled:
            violations = constants + sum(cost[pick] for cost, pick in zip(costs, picks, strict=True))
            gain = float(sum(value[pick] for value, pick in zip(values, picks, strict=True)))
            over = float(np.maximum(violations, 0.0).sum())
            plan = ChannelPlan(tuple((c.name, c.widths[pick]) for c, pick in zip(choices, picks, strict=True)))
            found[plan] = (over > 0, over if over > 0 else -gain)
        weights = weights * np.exp(2 * (constants + sum(cost[pick] for cost, pick in zip(costs, filled[0], strict=True))))
        weights /= weights.sum()
    yield from sorted(found, key=lambda plan: found[plan])


def fill(values: list[Floats], costs: list[Floats], capacity: float, bins: int) -> Ints:
    """Multiple-choice knapsack: one entry of each group, their costs within `capacity`, their values as large as can be.

    By dynamic programming over `bins` steps of what can be spent, costs rounded up. Returns (solutions, groups): the best
    first, then the best for ever less to spend; the cheapest of all where nothing fits.
    """
    cheapest = np.asarray([[int(cost.argmin()) for cost in costs]])
    room = capacity - sum(float(cost.min()) for cost in costs)
    if room < 0:
        return cheapest
    room = max(room, 1e-12)  # with none left, or no limit at all, what costs no more than the cheapest still fits
    best = np.zeros(bins + 1)
    picked = np.zeros((len(values), bins + 1), dtype=np.int64)
    steps = [np.minimum(np.ceil((cost - cost.min()) / room * bins - 1e-9), bins + 1).astype(np.int64) for cost in costs]
    for group, (value, step) in enumerate(zip(values, steps, strict=True)):
        following = np.full(bins + 1, -np.inf)
        for pick in range(len(value)):
            spent = int(step[pick])
            if spent > bins:
                continue
            reached = best[: bins + 1 - spent] + value[pick]
            better = reached > following[spent:]
            following[spent:][better] = reached[better]
            picked[group, spent:][better] = pick
        best = following
    solutions: dict[tuple[int, ...], None] = {}
    for budget in range(bins, -1, -1):
        left, picks = budget, []
        for group in reversed(range(len(values))):
            picks.append(int(picked[group, left]))
            left -= int(steps[group][picks[-1]])
        solutions[tuple(reversed(picks))] = None
    return np.asarray([*solutions, *map(tuple, cheapest.tolist())])
