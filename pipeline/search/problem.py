"""What a searcher is given, and what it gets back for a plan."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan

__all__ = [
    "NAMED_REWARDS",
    "Choice",
    "Evaluate",
    "Evaluation",
    "Layer",
    "Problem",
    "Reward",
    "SearchSpace",
    "Searcher",
    "TrialsSpent",
    "widths_of",
]


NamedReward = Literal["accuracy", "accuracy-entropy", "channel-entropy", "spatial-entropy", "least-entropy"]
NAMED_REWARDS: tuple[str, ...] = get_args(NamedReward)
Reward = NamedReward | Callable[[Candidate], float]
"""What the evaluator calls a score: the task's own; that times the share of the dense network's spatial entropy that the
activations keep; this share, or that of its effective channels, in percent; paper B's 100 x (1 - spatial entropy); or what a
function of one's own makes of a measured candidate, whose entropies are then known as well.
"""


@dataclass(frozen=True)
class Layer:
    """What paper A's agent is told of a layer; for a group, of its first."""

    inputs: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Choice:
    """One group of channels, as a searcher sees it."""

    name: str
    channels: int
    widths: tuple[int, ...]
    """The widths on offer, ascending; the last one keeps everything."""
    macs_share: float
    """Share of the network's arithmetic that goes when this group alone is at its thinnest."""
    params_share: float
    """Share of its parameters that goes then."""
    layer: Layer = Layer()


@dataclass(frozen=True)
class SearchSpace:
    """All choices, from the network's input to its output."""

    choices: tuple[Choice, ...]

    @property
    def size(self) -> int:
        """How many plans there are."""
        return math.prod(len(choice.widths) for choice in self.choices)

    def plan(self, fractions: Sequence[float]) -> ChannelPlan:
        """The plan whose widths are nearest to these fractions of each group's channels; ties go to the wider."""
        pairs = zip(self.choices, fractions, strict=True)
        return ChannelPlan(tuple((choice.name, nearest_width(choice, fraction)) for choice, fraction in pairs))

    def uniform(self, fraction: float) -> ChannelPlan:
        """Every group at the same fraction."""
        return self.plan([fraction] * len(self.choices))

    def thinnest(self) -> ChannelPlan:
        """Every group at its smallest width."""
        return self.uniform(0.0)

    def dense(self) -> ChannelPlan:
        """Every group whole."""
        return self.uniform(1.0)


def nearest_width(choice: Choice, fraction: float) -> int:
    """The width on offer nearest to `fraction` of the channels; ties go to the wider."""
    return min(choice.widths, key=lambda width: (abs(width - fraction * choice.channels), -width))


def widths_of(channels: int, bundle: int, step: int) -> tuple[int, ...]:
    """The widths on offer for a group: multiples of `step` outputs, from a thirty-second of all up to all of them.

    The floor keeps a searcher from emptying a layer, which some rewards would like.
    """
    unit = max(1, round(step / bundle))
    floor = max(unit, math.ceil(channels / 32 / unit) * unit)
    return tuple(sorted({*range(floor, channels, unit), channels}))


@dataclass(frozen=True)
class Evaluation:
    """What the black box says of a plan."""

    plan: ChannelPlan
    score: float
    """What a searcher is to make large, 0 to 100: the accuracy, or another reward. Of a plan that failed 0, or
    what the worse of the dense and the thinnest is worth, where that is less.
    """
    violations: tuple[float, ...]
    """One per constraint, as a share of the limit, at the careful end of its interval; <= 0 is within."""

    @property
    def feasible(self) -> bool:
        """Within every constraint."""
        return all(violation <= 0 for violation in self.violations)


class TrialsSpent(Exception):
    """Raised by `evaluate` when no trials are left. A searcher may let it through."""


Evaluate = Callable[[ChannelPlan], Evaluation]


@dataclass(frozen=True)
class Problem:
    """Everything that a searcher knows.

    >>> from pipeline import Problem
    >>> from pipeline.search.problem import Choice, Evaluation, SearchSpace
    >>> space = SearchSpace((Choice("conv", channels=8, widths=(4, 8), macs_share=0.5, params_share=0.5),))
    >>> def evaluate(plan):
    ...     return Evaluation(plan, score=90.0, violations=(plan["conv"] / 8 - 0.5,))
    >>> problem = Problem(space, evaluate, trials=2, constraints=1, seed=0)
    >>> problem.evaluate(space.thinnest()).feasible
    True
    """

    space: SearchSpace
    evaluate: Evaluate
    """Judges a plan: slow, noisy, not differentiable. Raises TrialsSpent."""
    trials: int
    """How many judgements there are."""
    constraints: int
    """How many violations each judgement has."""
    seed: int
    known: tuple[Evaluation, ...] = ()
    """What was judged before the search began, the dense and the thinnest plan; no trials of it."""


Searcher = Callable[[Problem], None]
"""Calls `problem.evaluate` at most `problem.trials` times. The best feasible plan is picked from the journal, not by it.

The same seed and the same answers give the same questions; that is what makes a run resumable.
"""
