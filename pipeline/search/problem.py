"""Problem: what a searcher gets, and what it gets back for a plan."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan

__all__ = [
    "NAMED_REWARDS",
    "Choice",
    "Evaluate",
    "Evaluation",
    "Layer",
    "Path",
    "Problem",
    "Reward",
    "SearchSpace",
    "Searcher",
    "SearcherFactory",
    "SharingSearcher",
    "TrialsSpent",
    "widths_of",
]


NamedReward = Literal["accuracy", "accuracy-entropy", "channel-entropy", "spatial-entropy", "least-entropy"]
NAMED_REWARDS: tuple[str, ...] = get_args(NamedReward)
Reward = NamedReward | Callable[[Candidate], float]
"""What the search maximises: the task's score; the score times the kept share of the dense network's spatial entropy; that share,
or the kept share of effective channels, in percent; paper B's 100 x (1 - spatial entropy); or a user's own function of a measured
candidate, whose entropies are known too.
"""


@dataclass(frozen=True)
class Layer:
    """What paper A's agent observes of a layer. For a group, of its first layer."""

    inputs: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Choice:
    """One group of channels, or one block of layers that can be dropped, as a searcher sees it."""

    name: str
    channels: int
    widths: tuple[int, ...]
    """Allowed widths, ascending. The last one keeps everything."""
    macs_share: float
    """Share of the network's MACs that is saved when only this group is at its thinnest."""
    params_share: float
    """Share of the network's parameters that is saved then."""
    layer: Layer = Layer()
    is_block: bool = False
    """Whether it is a block of layers instead: 1 of 1 "channel" when it is kept, 0 when it is dropped."""
    contents: tuple[str, ...] = ()
    """For a block: the choices inside it. They follow it directly, and mean nothing when it is dropped."""
    loss: float | None = None
    """For a block: what dropping it alone costs, in a unit that all blocks share. None if it was not measured."""


@dataclass(frozen=True)
class SearchSpace:
    """All choices, from the network's input to its output. A block is followed by the choices inside it."""

    choices: tuple[Choice, ...]

    @property
    def size(self) -> int:
        """Number of plans. Plans that differ only inside dropped blocks are counted apart."""
        return math.prod(len(choice.widths) for choice in self.choices)

    @property
    def has_blocks(self) -> bool:
        """Whether there are blocks that can be dropped."""
        return any(choice.is_block for choice in self.choices)

    def plan_of(self, widths: Sequence[int]) -> ChannelPlan:
        """The plan with these widths, one per choice. The width of a block is 1, or 0 when it is dropped.

        What is inside a dropped block is left out of the plan.
        """
        kept, dropped, nothing = [], [], set[str]()
        for choice, width in zip(self.choices, widths, strict=True):
            if choice.name in nothing:
                continue
            if not choice.is_block:
                kept.append((choice.name, width))
            elif not width:
                dropped.append(choice.name)
                nothing.update(choice.contents)
        return ChannelPlan(tuple(kept), tuple(dropped))

    def widths_in(self, plan: ChannelPlan) -> tuple[int, ...]:
        """The width of each choice in `plan`: what `plan_of` takes. What is inside a dropped block has its full width."""
        widths = dict(plan) | dict.fromkeys(plan.dropped, 0)
        return tuple(widths.get(choice.name, choice.channels) for choice in self.choices)

    def plan(self, fractions: Sequence[float]) -> ChannelPlan:
        """The plan whose widths are nearest to these fractions of each group's channels. Ties go to the wider width.

        A block is kept if its fraction is at least one half.
        """
        pairs = zip(self.choices, fractions, strict=True)
        return self.plan_of([nearest_width(choice, fraction) for choice, fraction in pairs])

    def uniform(self, fraction: float, depth: float = 1.0) -> ChannelPlan:
        """Every group at the same fraction, with a share `depth` of the blocks.

        The blocks that lose least for the MACs that they save are dropped. If some losses are not known, the kept ones are spread
        evenly from input to output.
        """
        blocks = [number for number, choice in enumerate(self.choices) if choice.is_block]
        kept = {block for place, block in enumerate(blocks) if math.floor((place + 1) * depth) > math.floor(place * depth)}
        if all(self.choices[block].loss is not None for block in blocks):
            kept = set(sorted(blocks, key=self._price, reverse=True)[: len(kept)])
        return self.plan([float(n in kept) if choice.is_block else fraction for n, choice in enumerate(self.choices)])

    def _price(self, block: int) -> float:
        """What dropping a block costs for each share of the MACs that it saves."""
        choice = self.choices[block]
        return (choice.loss or 0.0) / max(choice.macs_share, 1e-6)

    def thinnest(self) -> ChannelPlan:
        """Every group at its smallest width, without any block."""
        return self.plan([0.0] * len(self.choices))

    def dense(self) -> ChannelPlan:
        """Every group at its full width, with all blocks."""
        return self.uniform(1.0)


def nearest_width(choice: Choice, fraction: float) -> int:
    """The allowed width nearest to `fraction` of the channels. Ties go to the wider width."""
    return min(choice.widths, key=lambda width: (abs(width - fraction * choice.channels), -width))


def widths_of(channels: int, bundle: int, step: int) -> tuple[int, ...]:
    """The allowed widths of a group: multiples of `step` outputs, from a thirty-second of all up to all of them.

    The minimum keeps a searcher from emptying a layer, which some rewards would favour.
    """
    unit = max(1, round(step / bundle))
    floor = max(unit, math.ceil(channels / 32 / unit) * unit)
    return tuple(sorted({*range(floor, channels, unit), channels}))


@dataclass(frozen=True)
class Evaluation:
    """The black box's answer to a plan."""

    plan: ChannelPlan
    score: float
    """The reward that a searcher maximises, 0 to 100: the accuracy, or another reward. A failed plan gets 0, or the smaller
    of the rewards of the dense and the thinnest plan if that is below 0.
    """
    violations: tuple[float, ...]
    """One per constraint, as a share of the limit, at the upper end of its interval. <= 0 is within the limit."""

    @property
    def feasible(self) -> bool:
        """Whether the plan is within every constraint."""
        return all(violation <= 0 for violation in self.violations)


class TrialsSpent(Exception):
    """Raised by `evaluate` if no trials are left. A searcher may let it pass."""


Evaluate = Callable[[ChannelPlan], Evaluation]


class Path(Protocol):
    """Maps a share, 0 to 1, to a plan that is expected to lose little for its size; 1 is the dense plan."""

    def __call__(self, share: float, block_gain: float = 1.0, /) -> ChannelPlan:
        """`block_gain`: what a MAC saves that is saved by dropping blocks, as a multiple of one saved by removing channels."""
        ...


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
    """Evaluates a plan. It is slow, noisy and not differentiable. Raises TrialsSpent."""
    trials: int
    """Number of evaluations."""
    constraints: int
    """Number of violations in each evaluation."""
    seed: int
    known: tuple[Evaluation, ...] = ()
    """Evaluations from before the search: the dense and the thinnest plan. They do not count as trials."""
    path: Path | None = None
    """Plans from which a search starts. None: uniform plans, and plans without a share of the blocks."""


class Searcher(Protocol):
    """Asks for plans and is told their evaluations. The best feasible plan is taken from the journal, not from it.

    The same seed, the same calls and the same evaluations must give the same plans. This makes a run resumable.
    """

    def ask(self, n: int) -> Sequence[ChannelPlan]:
        """The next plans, at most `n`. Fewer, or none, if it needs more answers first, or if it has ended.

        It has ended if it returns none while no plan waits for its answer.
        """
        ...

    def tell(self, answers: Sequence[Evaluation]) -> None:
        """Take the evaluations of the oldest plans without one, in the order in which they were asked."""
        ...


@runtime_checkable
class SharingSearcher(Searcher, Protocol):
    """A searcher that also learns from plans that it did not ask for."""

    def learn(self, others: Sequence[Evaluation]) -> None:
        """Take evaluations of plans that a search for another budget asked for. Their violations are those of this budget."""
        ...


SearcherFactory = Callable[[Problem], Searcher | None]
"""Makes the searcher of a problem. A function can also do the whole search itself: it calls `problem.evaluate` at most
`problem.trials` times, one plan at a time, and returns None.
"""
