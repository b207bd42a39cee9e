"""Knapsack: measure what each width of each group and the absence of each block saves and costs, and solve for the best sum
(Shen et al., HALP, arXiv 2110.10811).

Differences from HALP:
 1. The saving of a width is measured on the whole network, not read from a table of layers.
 2. The cost of a width is the change in score, not a Taylor expansion of the loss.
 3. The solution is a width per group, found at once. HALP prunes single channels in rounds, with fine-tuning between them.
 4. It is solved again after each evaluation, with estimates fitted to all of them, because neither sum is exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell
from pipeline.search.believe import believed
from pipeline.search.start import BISECTION_TRIALS, start_and_design
from pipeline.search.surrogate import Surrogate, fit

__all__ = ["KnapsackSettings", "fill", "knapsack"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class KnapsackSettings:
    """How the trials are divided."""

    bisection_trials: int = BISECTION_TRIALS
    design_share: float = 0.3
    bins: int = 1000
    """The number of steps in which the budget is spent."""
    rounds: int = 12
    """Solutions per set of estimates. Between them, the weights of several constraints are corrected."""


@ask_and_tell
def knapsack(state: SearchState, settings: KnapsackSettings | None = None) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`."""
    settings = settings or KnapsackSettings()
    trials = state.problem.trials
    yield from start_and_design(state, min(settings.bisection_trials, trials), round(settings.design_share * trials))
    while state.asked < trials:
        answers = believed(state)
        known = {answer.plan for answer in answers}
        solved = _solutions(fit(state.space, answers, additive=True), settings)
        plan = next((plan for plan in solved if plan not in known), None)
        if plan is not None:
            yield plan
        elif state.pending:
            yield WAIT  # the estimates change with the answers
        else:
            return  # no plan that is still unknown has a better estimate


def _solutions(model: Surrogate, settings: KnapsackSettings) -> Iterator[ChannelPlan]:
    """Plans that are estimated to be within the budget, best score first; then the others, by how little they exceed it."""
    choices = model.space.choices
    contents = [len(choice.contents) for choice in choices]
    values = [score for score, _ in model.tables]
    costs = [violations for _, violations in model.tables]
    constants = np.asarray([curve.constant for curve in model.violations])
    weights = np.ones(len(constants)) / max(len(constants), 1)
    found: dict[ChannelPlan, tuple[bool, float]] = {}
    for _ in range(settings.rounds if len(constants) > 1 else 1):
        filled = fill(values, [cost @ weights for cost in costs], -float(weights @ constants), settings.bins, contents)
        for picks in filled:
            violations = constants + sum(cost[pick] for cost, pick in zip(costs, picks, strict=True))
            gain = float(sum(value[pick] for value, pick in zip(values, picks, strict=True)))
            over = float(np.maximum(violations, 0.0).sum())
            plan = model.space.plan_of([c.widths[pick] for c, pick in zip(choices, picks, strict=True)])
            found[plan] = (over > 0, over if over > 0 else -gain)
        weights = weights * np.exp(2 * (constants + sum(cost[pick] for cost, pick in zip(costs, filled[0], strict=True))))
        weights /= weights.sum()
    yield from sorted(found, key=lambda plan: found[plan])


def fill(values: list[Floats], costs: list[Floats], capacity: float, bins: int, contents: Sequence[int] = ()) -> Ints:
    """Multiple-choice knapsack: one entry per group, with total cost at most `capacity` and the largest total value.

    A group with `contents` is a block: entry 0 drops it, and then the next `contents` groups have their last entries.

    Solved by dynamic programming over `bins` cost steps, with costs rounded up. Returns indices (solutions, groups): the best
    solution, then the best for ever smaller capacities, then the cheapest entries. If nothing fits, only the cheapest.
    """
    contents = contents or [0] * len(costs)
    cheapest = np.asarray([_without_contents([int(cost.argmin()) for cost in costs], costs, contents)])
    room = capacity - sum(float(cost.min()) for cost in costs)
    if room < 0:
        return cheapest
    room = max(room, 1e-12)  # without room, or without a limit, entries that cost no more than the cheapest still fit
    best = np.zeros(bins + 1)
    picked = np.zeros((len(values), bins + 1), dtype=np.int64)
    steps = [np.minimum(np.ceil((cost - cost.min()) / room * bins - 1e-9), bins + 1).astype(np.int64) for cost in costs]
    without: dict[int, tuple[Floats, int]] = {}  # block -> the best values when it is dropped, and the cost of that
    better_without: dict[int, NDArray[np.bool_]] = {}
    for group, (value, step) in enumerate(zip(values, steps, strict=True)):
        following = np.full(bins + 1, -np.inf)
        if contents[group]:
            inside = range(group + 1, group + 1 + contents[group])
            spent = min(int(step[0]) + sum(int(steps[each][-1]) for each in inside), bins + 1)
            gained = float(value[0]) + sum(float(values[each][-1]) for each in inside)
            without[group] = np.concatenate([np.full(spent, -np.inf), best + gained])[: bins + 1], spent
        for pick in range(1 if contents[group] else 0, len(value)):
            spent = int(step[pick])
            if spent > bins:
                continue
            reached = best[: bins + 1 - spent] + value[pick]
            better = reached > following[spent:]
            following[spent:][better] = reached[better]
            picked[group, spent:][better] = pick
        best = following
        for block in _ending(group, contents):  # the inner blocks first
            better_without[block] = without[block][0] > best
            best = np.maximum(best, without[block][0])
    solutions: dict[tuple[int, ...], None] = {}
    for budget in range(bins, -1, -1):
        if best[budget] == -np.inf:
            break
        left, picks, group = budget, [len(value) - 1 for value in values], len(values) - 1
        while group >= 0:
            dropped = next((block for block in reversed(_ending(group, contents)) if better_without[block][left]), None)
            if dropped is not None:
                picks[dropped] = 0
                left -= without[dropped][1]
                group = dropped - 1
                continue
            picks[group] = int(picked[group, left])
            left -= int(steps[group][picks[group]])
            group -= 1
        solutions[tuple(picks)] = None
    return np.asarray([*solutions, *map(tuple, cheapest.tolist())])


def _ending(group: int, contents: Sequence[int]) -> list[int]:
    """The blocks whose contents end with `group`, the innermost first."""
    return [block for block in range(group - 1, -1, -1) if contents[block] and block + contents[block] == group]


def _without_contents(picks: list[int], costs: list[Floats], contents: Sequence[int]) -> list[int]:
    """`picks` with the last entry of every group that is inside a dropped block."""
    for block, size in enumerate(contents):
        if size and picks[block] == 0:
            picks[block + 1 : block + 1 + size] = [len(cost) - 1 for cost in costs[block + 1 : block + 1 + size]]
    return picks
