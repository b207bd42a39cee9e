"""Start: the best plan of a few simple rows, and plans around it, from which a searcher goes on."""

import functools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.initial_design import initial_design
from pipeline.search.problem import Evaluation, Problem, SearchSpace
from pipeline.search.surrogate import fractions
from pipeline.search.uniform import bisect

__all__ = ["BISECTION_TRIALS", "Beginning", "begin", "blocks_first", "find_start", "recording"]

Floats = NDArray[np.float64]

BISECTION_TRIALS = 6
"""Trials that find the best uniform plan."""


def recording(problem: Problem, answers: list[Evaluation]) -> Problem:
    """Return `problem` with each of its evaluations appended to `answers`, too."""

    def ask(plan: ChannelPlan) -> Evaluation:
        answers.append(problem.evaluate(plan))
        return answers[-1]

    return replace(problem, evaluate=ask)


@dataclass(frozen=True)
class Beginning:
    """How the first trials of a search with a surrogate are spent."""

    bisection_trials: int = BISECTION_TRIALS
    design_share: float = 0.2
    """Share of the trials that go to the initial design."""
    fewest_trials_for_design: int = 30


def begin(problem: Problem, beginning: Beginning = Beginning()) -> tuple[Problem, list[Evaluation], Floats]:
    """Spend the first trials.

    Returns a problem that keeps its evaluations, their list, which begins with the known ones, and the fractions of the best
    plan, (choices,).
    """
    answers = list(problem.known)
    asking = recording(problem, answers)
    start = find_start(asking, min(beginning.bisection_trials, problem.trials))
    if problem.trials >= beginning.fewest_trials_for_design:
        initial_design(asking, start, round(beginning.design_share * problem.trials))
    return asking, answers, start


def find_start(problem: Problem, steps: int) -> Floats:
    """Evaluate up to `steps` plans, and return the fractions of the best one within the budget, (choices,).

    All plans keep the same share of every group, unless there is a `problem.path`, or blocks can be dropped. Then half of the
    steps go to plans of the path, or of `blocks_first`. If no plan is within the budget, it is the last share that bisection
    reached.
    """
    space = problem.space
    other = problem.path or (functools.partial(blocks_first, space) if space.has_blocks else None)
    if other is None:
        return np.full(len(space.choices), bisect(problem, steps))
    answers: list[Evaluation] = []
    asking = recording(problem, answers)
    bisect(asking, steps - steps // 2, other)
    share = bisect(asking, steps // 2)
    feasible = [answer for answer in answers if answer.feasible]
    best = max(feasible, key=lambda answer: answer.score).plan if feasible else space.uniform(share)
    return fractions(space, best)


def blocks_first(space: SearchSpace, share: float) -> ChannelPlan:
    """The plan with a share of the blocks. Below one half, every group keeps twice that share of its channels.

    A network with fewer layers is usually better than one with as many thin layers that takes the same time.
    """
    return space.uniform(min(1.0, 2 * share), share)
