"""Toy problems for searchers: a few groups, formulas for score and cost, and an optimum that can be computed."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import drive, search
from pipeline.search.problem import Choice, Evaluation, Problem, SearcherFactory, SearchSpace, TrialsSpent

CHANNELS = 64
WIDTHS = (4, *range(8, 65, 8))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Toy:
    """Score rises with width, with diminishing returns. Cost rises with width too, linearly or not."""

    value: tuple[float, ...]
    """The value of each group's channels. Sums to 1."""
    curve: tuple[float, ...]
    """How soon a group has enough channels."""
    cost: tuple[float, ...]
    """The cost of each group's channels. Sums to 1."""
    limit: float = 0.5
    shape: Literal["straight", "cliff", "ragged", "chain"] = "straight"
    """straight: cost = width. cliff: the cost of the next multiple of 16. ragged: a width that is not a multiple of 16 takes 1.4
    times as long, so fewer channels can cost more. chain: a group costs its width times the previous group's.
    """
    collapse: bool = False
    """Below a value of about one half, the score is at chance level, as in real networks before fine-tuning."""
    noise: float = 0.0
    """Standard deviation of the violation. The same plan always gets the same error."""

    @property
    def space(self) -> SearchSpace:
        return SearchSpace(
            tuple(
                Choice(f"group{i}", CHANNELS, WIDTHS, macs_share=cost, params_share=1 / len(self.cost))
                for i, cost in enumerate(self.cost)
            )
        )

    def scores(self, kept: Floats) -> Floats:
        """Kept fractions (..., groups) -> scores (...)."""
        curve = np.array(self.curve)
        worth = ((1 - np.exp(-curve * kept)) / (1 - np.exp(-curve))) @ np.array(self.value)
        return 100 / (1 + np.exp(-12 * (worth - 0.5))) if self.collapse else 100 * worth

    def violations(self, kept: Floats) -> Floats:
        """Kept fractions (..., groups) -> violations (...)."""
        match self.shape:
            case "straight":
                paid = kept
            case "cliff":
                paid = np.ceil(kept * 4) / 4
            case "ragged":
                paid = np.where(kept * 4 % 1 == 0, kept, 1.4 * kept)
            case "chain":
                paid = kept * np.concatenate([np.ones_like(kept[..., :1]), kept[..., :-1]], axis=-1)
        return paid @ np.array(self.cost) / self.limit - 1

    def evaluation_of(self, plan: ChannelPlan) -> Evaluation:
        kept = np.array([width / CHANNELS for _, width in plan])
        error = 0.0
        if self.noise:
            error = self.noise * float(np.random.default_rng([width for _, width in plan]).standard_normal())
        return Evaluation(plan, float(self.scores(kept)), (float(self.violations(kept)) + error,))

    def optimum(self) -> float:
        """The best feasible score, found among all plans."""
        return _optimum(self)

    def solve(self, searcher: SearcherFactory, trials: int, seed: int, in_flight: int = 1) -> list[Evaluation]:
        """The evaluations that `searcher` requested, in order. Up to `in_flight` plans are not answered when it asks."""
        return requested(self.space, self.evaluation_of, searcher, trials, seed, in_flight)


@cache
def _optimum(toy: Toy) -> float:
    if len(toy.cost) <= 5:
        kept = np.array(list(itertools.product(WIDTHS, repeat=len(toy.cost)))) / CHANNELS
        return float(toy.scores(kept[toy.violations(kept) <= 0]).max(initial=-np.inf))
    return _optimum_of_many_groups(toy)


def _optimum_of_many_groups(toy: Toy, bins: int = 2000) -> float:
    """Dynamic programming over the cost, in steps rounded up, and the last width. The result is a tight lower bound."""
    fractions = np.array(WIDTHS) / CHANNELS
    groups, widths = len(toy.cost), len(WIDTHS)
    flat = replace(toy, collapse=False)
    best = np.full((bins + 1, widths), -np.inf)  # cost so far, last width -> value
    for group in range(groups):
        kept = np.zeros((widths, widths, groups))  # last width, this width
        kept[..., group] = fractions[None, :]
        worth = flat.scores(kept)[0]
        if group:
            kept[..., group - 1] = fractions[:, None]
        spent = toy.limit * (toy.violations(kept) + 1)
        if group:
            kept[..., group] = 0
            spent -= toy.limit * (toy.violations(kept) + 1)
        steps = np.ceil(spent / toy.limit * bins - 1e-9).astype(int)
        following = np.full_like(best, -np.inf)
        for this in range(widths):
            if group == 0:
                if steps[0, this] <= bins:
                    following[steps[0, this] :, this] = worth[this]
                continue
            for last in range(widths):
                step = steps[last, this]
                if step <= bins:
                    gained = best[: bins + 1 - step, last] + worth[this]
                    following[step:, this] = np.maximum(following[step:, this], gained)
        best = following
    total = best.max() / 100
    return float(100 / (1 + np.exp(-12 * (total - 0.5)))) if toy.collapse else float(100 * total)


def best_feasible(asked: list[Evaluation]) -> float:
    """The score of the best plan within the limit; 0 if there is none."""
    return max((found.score for found in asked if found.feasible), default=0.0)


SMOOTH = Toy(value=(0.5, 0.3, 0.15, 0.05), curve=(5.0, 2.0, 4.0, 1.0), cost=(0.1, 0.3, 0.2, 0.4))
CLIFF = Toy(value=(0.5, 0.3, 0.15, 0.05), curve=(5.0, 2.0, 4.0, 1.0), cost=(0.1, 0.3, 0.2, 0.4), shape="cliff")
RAGGED = Toy(value=(0.3, 0.4, 0.3), curve=(1.5, 5.0, 3.0), cost=(0.3, 0.3, 0.4), limit=0.42, shape="ragged")
CHAIN = Toy(
    value=(0.3, 0.2, 0.25, 0.15, 0.1),
    curve=(4.0, 1.0, 6.0, 2.0, 1.0),
    cost=(0.05, 0.15, 0.3, 0.3, 0.2),
    limit=0.2,
    shape="chain",
)
STEEP = Toy(value=(0.1, 0.6, 0.3), curve=(0.5, 0.5, 0.5), cost=(0.6, 0.2, 0.2), limit=0.35)
"""No diminishing returns: a group is worth keeping with all its channels, or not at all."""
TOYS = {"smooth": SMOOTH, "cliff": CLIFF, "ragged": RAGGED, "chain": CHAIN, "steep": STEEP}


def deep(shape: Literal["straight", "cliff", "ragged", "chain"], limit: float, groups: int = 16) -> Toy:
    """As many groups as a real network, random values and costs, scores that collapse, and noisy measurements."""
    generator = np.random.default_rng(groups)
    value, cost = generator.dirichlet(np.full(groups, 2.0)), generator.dirichlet(np.full(groups, 2.0))
    curve = generator.uniform(0.5, 6.0, groups)
    return Toy(tuple(value), tuple(curve), tuple(cost), limit, shape, collapse=True, noise=0.01)


IMPOSSIBLE = Toy(value=(0.5, 0.5), curve=(2.0, 2.0), cost=(0.5, 0.5), limit=0.01)


def requested(
    space: SearchSpace,
    evaluation_of: Callable[[ChannelPlan], Evaluation],
    searcher: SearcherFactory,
    trials: int,
    seed: int,
    in_flight: int = 1,
) -> list[Evaluation]:
    """The evaluations that `searcher` requested of a toy, in order. It knows the dense and the thinnest plan."""
    asked: list[Evaluation] = []

    def evaluate(plan: ChannelPlan) -> Evaluation:
        if len(asked) >= trials:
            raise TrialsSpent
        asked.append(evaluation_of(plan))
        return asked[-1]

    def submit(number: int, plan: ChannelPlan) -> Callable[[], Evaluation]:
        found = evaluate(plan)
        return lambda: found

    known = (evaluation_of(space.dense()), evaluation_of(space.thinnest()))
    problem = Problem(space, evaluate, trials, constraints=1, seed=seed, known=known)
    with contextlib.suppress(TrialsSpent):
        if in_flight == 1:
            search(searcher, problem)
        elif made := searcher(problem):
            drive(made, submit, trials, in_flight)
    return asked
