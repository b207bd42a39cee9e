"""Start: the best plan of a few simple rows, and plans around it, from which a searcher goes on."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import Questions, SearchState
from pipeline.search.initial_design import initial_design
from pipeline.search.problem import SearchSpace
from pipeline.search.surrogate import fractions
from pipeline.search.uniform import bisection

__all__ = ["BISECTION_TRIALS", "Beginning", "begin", "blocks_first", "find_start"]

Floats = NDArray[np.float64]

BISECTION_TRIALS = 6
"""Trials that find the best uniform plan."""


@dataclass(frozen=True)
class Beginning:
    """How the first trials of a search with a surrogate are spent."""

    bisection_trials: int = BISECTION_TRIALS
    design_share: float = 0.2
    """Share of the trials that go to the initial design."""
    fewest_trials_for_design: int = 30


def begin(state: SearchState, beginning: Beginning = Beginning()) -> Questions[Floats]:
    """Spend the first trials, and return the fractions of the best plan of `find_start`, (choices,)."""
    trials = state.problem.trials
    start = yield from find_start(state, min(beginning.bisection_trials, trials))
    if trials >= beginning.fewest_trials_for_design:
        yield from initial_design(state, start, round(beginning.design_share * trials))
    return start


def find_start(state: SearchState, steps: int) -> Questions[Floats]:
    """Ask for up to `steps` plans, and return the fractions of the best one within the budget, (choices,).

    All plans keep the same share of every group, unless there is a `problem.path`, or blocks can be dropped. Then half of the
    steps go to plans of the path, or of `blocks_first`. If no plan is within the budget, it is the last share that bisection
    reached.
    """
    space = state.space
    other = state.problem.path or (functools.partial(blocks_first, space) if space.has_blocks else None)
    if other is None:
        return np.full(len(space.choices), (yield from bisection(state, steps)))
    first = len(state.answers)
    yield from bisection(state, steps - steps // 2, other)
    share = yield from bisection(state, steps // 2)
    feasible = [answer for answer in state.answers[first:] if answer.feasible]
    best = max(feasible, key=lambda answer: answer.score).plan if feasible else space.uniform(share)
    return fractions(space, best)


def blocks_first(space: SearchSpace, share: float) -> ChannelPlan:
    """The plan with a share of the blocks. Below one half, every group keeps twice that share of its channels.

    A network with fewer layers is usually better than one with as many thin layers that takes the same time.
    """
    return space.uniform(min(1.0, 2 * share), share)
