"""Toy problems for searchers: a few groups, a score and a cost that are formulas, an optimum that can be looked up."""

import contextlib
import itertools
import math
from dataclasses import dataclass

import numpy as np

from pipeline.plan import ChannelPlan
from pipeline.search.problem import Assessment, Choice, Problem, Searcher, SearchSpace, TrialsSpent

CHANNELS = 64
WIDTHS = (4, *range(8, 65, 8))


@dataclass(frozen=True)
class Toy:
    """Score rises with width, with falling returns; cost is the sum of widths, in steps where there is a cliff."""

    value: tuple[float, ...]
    """What each group's channels are worth; sums to 1."""
    curve: tuple[float, ...]
    """How soon a group has enough channels."""
    cost: tuple[float, ...]
    """What each group's channels cost; sums to 1."""
    limit: float = 0.5
    cliff: bool = False
    """Widths cost as much as the next multiple of 16."""

    @property
    def space(self) -> SearchSpace:
        return SearchSpace(
            tuple(
                Choice(f"group{i}", CHANNELS, WIDTHS, cost, value)
                for i, (cost, value) in enumerate(zip(self.cost, self.value, strict=True))
            )
        )

    def assess(self, plan: ChannelPlan) -> Assessment:
        kept = np.array([width / CHANNELS for _, width in plan])
        gain = (1 - np.exp(-np.array(self.curve) * kept)) / (1 - np.exp(-np.array(self.curve)))
        paid = np.ceil(kept * 4) / 4 if self.cliff else kept
        return Assessment(plan, 100 * float(gain @ self.value), (float(paid @ self.cost) / self.limit - 1,))

    def optimum(self) -> float:
        """The best feasible score, by looking at every plan."""
        names = [choice.name for choice in self.space.choices]
        plans = (ChannelPlan(tuple(zip(names, widths, strict=True))) for widths in itertools.product(WIDTHS, repeat=len(names)))
        return max((found.score for found in map(self.assess, plans) if found.feasible), default=-math.inf)

    def solve(self, searcher: Searcher, trials: int, seed: int) -> list[Assessment]:
        """What `searcher` asked, in order."""
        asked: list[Assessment] = []

        def evaluate(plan: ChannelPlan) -> Assessment:
            if len(asked) >= trials:
                raise TrialsSpent
            asked.append(self.assess(plan))
            return asked[-1]

        with contextlib.suppress(TrialsSpent):
            searcher(Problem(self.space, evaluate, trials, constraints=1, seed=seed))
        return asked


def best_feasible(asked: list[Assessment]) -> float:
    """The score of the best plan within the limit; 0 when there is none."""
    return max((found.score for found in asked if found.feasible), default=0.0)


SMOOTH = Toy(value=(0.5, 0.3, 0.15, 0.05), curve=(5.0, 2.0, 4.0, 1.0), cost=(0.1, 0.3, 0.2, 0.4))
CLIFF = Toy(value=(0.5, 0.3, 0.15, 0.05), curve=(5.0, 2.0, 4.0, 1.0), cost=(0.1, 0.3, 0.2, 0.4), cliff=True)
IMPOSSIBLE = Toy(value=(0.5, 0.5), curve=(2.0, 2.0), cost=(0.5, 0.5), limit=0.01)
