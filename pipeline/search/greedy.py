"""Greedy: narrow the group, or drop the block, that costs least for what it saves, step by step, after NetAdapt (Yang et al.,
arXiv 1804.03230).

Differences from NetAdapt:
 1. The saving of a narrower group is measured on the whole network, not read from a table of layers.
 2. A step tries as many groups as the trials allow, starting with those that cost least when they were last tried.
 3. No proposal is fine-tuned. A step takes the group with the lowest cost per saving; NetAdapt has a target that decays.
 4. Within the budget, the remaining trials widen one group, or widen one and narrow another, if that raises the score.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.surrogate import fractions

__all__ = ["GreedySettings", "greedy"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GreedySettings:
    """How the trials are divided."""

    steps: int = 10
    """Number of steps from the dense network to the budget."""
    narrowing_share: float = 0.6
    """Share of the trials for these steps. The others improve the plan that was found."""


class _Estimates:
    """The observed savings and costs of each group, per share of its channels."""

    def __init__(self, problem: Problem) -> None:
        choices = problem.space.choices
        self.saved = np.asarray([max(choice.macs_share, 1e-3) for choice in choices])
        """The violation that narrowing a group saves, first estimated from its MACs."""
        self.paid = np.zeros(len(choices))
        """The score that narrowing a group costs. It starts at 0, so that every group is tried."""
        self.asked: set[ChannelPlan] = set()

    def learn(self, group: int, removed: float, before: Evaluation, after: Evaluation) -> None:
        self.saved[group] = max((_worst(before) - _worst(after)) / removed, 0.5 * self.saved[group])
        self.paid[group] = (before.score - after.score) / removed


@ask_and_tell
def greedy(state: SearchState, settings: GreedySettings | None = None) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`.

    The proposals of one step do not depend on each other, so they can be evaluated at once.
    """
    settings = settings or GreedySettings()
    problem, estimates = state.problem, _Estimates(state.problem)
    dense = problem.space.dense()
    known = next((answer for answer in problem.known if answer.plan == dense), None)
    if known is None:
        estimates.asked.add(dense)
        yield dense
        yield WAIT
    current = known or state.answers[-1]
    target = max(_worst(current), 0.0) / settings.steps
    groups = len(problem.space.choices)
    tries = int(np.clip(settings.narrowing_share * problem.trials / settings.steps, 1, groups))
    while not current.feasible:
        first, tried = len(state.answers), list[int]()
        for group in np.argsort(estimates.paid / estimates.saved, kind="stable"):
            plan = _narrower(problem, current.plan, int(group), target / estimates.saved[group])
            if plan is not None and plan not in estimates.asked and len(tried) < tries:
                estimates.asked.add(plan)
                tried.append(int(group))
                yield plan
        if not tried:
            return  # every group is at its thinnest
        yield WAIT
        answers = state.answers[first:]
        for group, answer in zip(tried, answers, strict=True):
            estimates.learn(group, _removed(problem, group, current.plan, answer.plan), current, answer)
        before = current
        current = min(answers, key=lambda answer: _price(before, answer))
    yield from _improve(state, estimates, current)


def _improve(state: SearchState, estimates: _Estimates, current: Evaluation) -> Questions[None]:
    """Accept the first neighbour that is feasible and better, in the order of their estimates. Stop if there is none.

    A pending neighbour is believed to be accepted, so that the next one starts from it. After an answer that is not better, the
    next neighbour starts from the best answer again.
    """
    seen, start = len(state.answers), current.plan
    while True:
        neighbours = _neighbours(state.problem, estimates, current, start)
        if start != current.plan and not any(feasible for feasible, _ in neighbours[:1]):
            start = current.plan
            continue
        if neighbours:
            start = neighbours[0][1]
            estimates.asked.add(start)
            yield start
        else:
            yield WAIT
        new, seen = state.answers[seen:], len(state.answers)
        better = [answer for answer in new if answer.feasible and answer.score > current.score]
        current = max([current, *better], key=_score)
        if len(better) < len(new):
            start = current.plan
        if not neighbours and not better:
            return


def _neighbours(
    problem: Problem, estimates: _Estimates, current: Evaluation, start: ChannelPlan
) -> list[tuple[bool, ChannelPlan]]:
    """Neighbours of `start` that were not asked, the most promising first, and whether each is expected to be feasible."""
    found: list[tuple[bool, float, int, ChannelPlan]] = []
    groups = range(len(problem.space.choices))
    for wide, narrow in product(groups, (None, *groups)):
        plan = _moved(problem, start, wide, 1)
        if plan is not None and narrow is not None:
            plan = None if wide == narrow else _moved(problem, plan, narrow, -1)
        if plan is not None and plan not in estimates.asked:
            wider = fractions(problem.space, plan) - fractions(problem.space, current.plan)
            found.append((_worst(current) + wider @ estimates.saved > 0, -float(wider @ estimates.paid), len(found), plan))
    return [(not over, plan) for over, _, _, plan in sorted(found, key=lambda each: each[:3])]


def _score(answer: Evaluation) -> float:
    return answer.score


def _narrower(problem: Problem, plan: ChannelPlan, group: int, removed: float) -> ChannelPlan | None:
    """`plan` with `group` narrowed by the fraction `removed`, and by at least one width."""
    choice, width = problem.space.choices[group], problem.space.widths_in(plan)[group]
    target = width - removed * choice.channels
    narrower = [each for each in choice.widths if each < width]
    if not narrower:
        return None
    fitting = [each for each in narrower if each <= target]
    return _with(problem, plan, group, fitting[-1] if fitting else narrower[0])


def _moved(problem: Problem, plan: ChannelPlan, group: int, by: int) -> ChannelPlan | None:
    """`plan` with `group` moved by `by` widths; None past the end."""
    choice = problem.space.choices[group]
    index = choice.widths.index(problem.space.widths_in(plan)[group]) + by
    return _with(problem, plan, group, choice.widths[index]) if 0 <= index < len(choice.widths) else None


def _with(problem: Problem, plan: ChannelPlan, group: int, width: int) -> ChannelPlan | None:
    """`plan` with another width of `group`; None if `group` is inside a dropped block."""
    widths = list(problem.space.widths_in(plan))
    widths[group] = width
    changed = problem.space.plan_of(widths)
    return None if changed == plan else changed


def _removed(problem: Problem, group: int, before: ChannelPlan, after: ChannelPlan) -> float:
    """The fraction of `group` that is removed."""
    return float(fractions(problem.space, before)[group] - fractions(problem.space, after)[group])


def _price(before: Evaluation, after: Evaluation) -> float:
    """Score lost per unit of violation saved. A plan that saves nothing is chosen only if no other saves anything."""
    saved = _worst(before) - _worst(after)
    return max(before.score - after.score, 0.0) / saved if saved > 0 else 1e9 - saved


def _worst(answer: Evaluation) -> float:
    return max(answer.violations, default=0.0)
