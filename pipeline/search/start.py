"""Start: the best plan of a few simple rows, and plans around it, from which a searcher goes on."""

import functools
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import Questions, SearchState
from pipeline.search.initial_design import design
from pipeline.search.problem import Evaluation, Problem, SearchSpace
from pipeline.search.surrogate import fractions
from pipeline.search.uniform import bisection

__all__ = ["BISECTION_TRIALS", "Beginning", "begin", "blocks_first", "expected_share", "find_start", "start_and_design"]

Floats = NDArray[np.float64]

BISECTION_TRIALS = 6
"""Trials that find the best uniform plan."""
MOST_GAIN = 10.0
"""Largest ratio of what blocks and channels are taken to save for a MAC. One measurement each is noisy."""


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
    designed = round(beginning.design_share * trials) if trials >= beginning.fewest_trials_for_design else 0
    return (yield from start_and_design(state, min(beginning.bisection_trials, trials), designed))


def start_and_design(state: SearchState, steps: int, designed: int) -> Questions[Floats]:
    """Find the start with `steps` plans, and ask for `designed` plans around it. Returns the start, (choices,).

    If several plans are wanted at once, a part of the design is asked before the start is known, around the share of all channels
    at which the limit is expected.
    """
    meanwhile = deque[ChannelPlan]()
    if state.wanted > 1 and designed:
        around = np.full(len(state.space.choices), expected_share(state))
        meanwhile.extend(design(state.space, around, min(designed, state.wanted), [state.problem.seed, 1]))
    early = len(meanwhile)
    start = yield from find_start(state, steps, meanwhile)
    left = min(designed - (early - len(meanwhile)), state.problem.trials - state.asked)
    yield from design(state.space, start, left, state.problem.seed)
    return start


def expected_share(state: SearchState) -> float:
    """The share of all channels at which the worst violation is 0, if it grows evenly from the thinnest to the dense plan."""
    known = {answer.plan: max(answer.violations, default=0.0) for answer in state.answers}
    low, high = known.get(state.space.thinnest()), known.get(state.space.dense())
    if low is None or high is None or high <= low:
        return 0.5
    return float(np.clip(-low / (high - low), 0.0, 1.0))


def find_start(state: SearchState, steps: int, meanwhile: deque[ChannelPlan] | None = None) -> Questions[Floats]:
    """Ask for up to `steps` plans, and return the fractions of the best one within the budget, (choices,).

    All plans keep the same share of every group, unless there is a `problem.path`, or blocks can be dropped. Then half of the
    steps go to plans of the path, or of `blocks_first`. With both, one plan of each other row comes first. Together they say what
    dropping blocks gains, and the rest goes to the path. If no plan is within the budget, it is the last uniform share that was
    reached. Plans of `meanwhile` are asked while there is nothing else to ask.
    """
    space, path = state.space, state.problem.path
    blocks = functools.partial(blocks_first, space)
    if path is None and not space.has_blocks:
        return np.full(len(space.choices), (yield from bisection(state, steps, meanwhile=meanwhile)))
    first = len(state.answers)
    if path and space.has_blocks:
        halves = (space.uniform(0.5), blocks(0.5))
        share = yield from bisection(state, min(steps, 1), lambda _: halves[0], meanwhile)
        yield from bisection(state, min(steps - 1, 1), lambda _: halves[1], meanwhile)
        found = {answer.plan: answer for answer in (*state.others, *state.answers[first:])}
        gain = block_gain(state.problem, *(found[plan] for plan in halves)) if found.keys() >= {*halves} else 1.0
        yield from bisection(state, steps - 2, lambda share: path(share, gain), meanwhile)
    else:
        yield from bisection(state, steps - steps // 2, path or blocks, meanwhile)
        share = yield from bisection(state, steps // 2, meanwhile=meanwhile)
    feasible = [answer for answer in (*state.others, *state.answers[first:]) if answer.feasible]
    best = max(feasible, key=lambda answer: answer.score).plan if feasible else space.uniform(share)
    return fractions(space, best)


def block_gain(problem: Problem, channels: Evaluation, blocks: Evaluation) -> float:
    """What a MAC saves that is saved by dropping blocks, as a multiple of one saved by removing channels.

    It follows from a plan with fewer channels, a plan with fewer blocks, and the dense plan. MACs are the sums of what each
    choice saves alone. The constraint counts that the dense plan violates most. 1 if it cannot be told.
    """
    dense = next((answer for answer in problem.known if answer.plan == problem.space.dense()), None)
    if dense is None or not dense.violations:
        return 1.0
    worst = int(np.argmax(dense.violations))
    rates = []
    for answer in (channels, blocks):
        macs = sum(
            choice.macs_share * (1 - kept) / (1 - choice.widths[0] / choice.channels)
            for choice, kept in zip(problem.space.choices, fractions(problem.space, answer.plan), strict=True)
            if len(choice.widths) > 1
        )
        rates.append((dense.violations[worst] - answer.violations[worst]) / max(macs, 1e-9))
    return float(np.clip(rates[1] / rates[0], 1 / MOST_GAIN, MOST_GAIN)) if min(rates) > 0 else 1.0


def blocks_first(space: SearchSpace, share: float) -> ChannelPlan:
    """The plan with a share of the blocks. Below one half, every group keeps twice that share of its channels.

    A network with fewer layers is usually better than one with as many thin layers that takes the same time.
    """
    return space.uniform(min(1.0, 2 * share), share)
