"""A toy problem with blocks: two groups outside, and blocks with one group each. Every plan is tried to find the optimum."""

import itertools
from functools import cached_property

from helpers.toys import requested
from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Choice, Evaluation, SearcherFactory, SearchSpace

WIDTHS = (8, 16, 32, 48, 64)
CHANNELS = 64


class DeepToy:
    """stem -> block1 (inner1) -> block2 (inner2) -> block3 (inner3) -> head

    A block costs a fixed part and a part that grows with its inner width, as thin layers do on a device. The blocks are worth
    different amounts, so the best plan under the limit drops some and keeps others wide.
    """

    def __init__(self, worth: tuple[float, ...] = (30.0, 5.0, 2.0), limit: float = 0.55) -> None:
        self.worth, self.limit = worth, limit

    @property
    def space(self) -> SearchSpace:
        def group(name: str) -> Choice:
            return Choice(name, CHANNELS, WIDTHS, macs_share=0.1, params_share=0.1)

        choices = [group("stem")]
        for number in range(1, len(self.worth) + 1):
            inner = group(f"inner{number}")
            choices += [Choice(f"block{number}", 1, (0, 1), 0.2, 0.2, is_block=True, contents=(inner.name,)), inner]
        return SearchSpace((*choices, group("head")))

    def evaluation_of(self, plan: ChannelPlan) -> Evaluation:
        widths = {name: width / CHANNELS for name, width in plan}
        score = 40.0 * widths["stem"] ** 0.3 + 20.0 * widths["head"] ** 0.5
        cost = 0.1 * widths["stem"] + 0.1 * widths["head"]
        for number, worth in enumerate(self.worth, start=1):
            if f"block{number}" not in plan.dropped:
                score += worth * widths[f"inner{number}"] ** 0.5
                cost += 0.13 + 0.13 * widths[f"inner{number}"]
        return Evaluation(plan, score, (cost / self.limit - 1,))

    @cached_property
    def plans(self) -> dict[ChannelPlan, Evaluation]:
        """Every plan once, with its evaluation."""
        every = (self.space.plan_of(widths) for widths in itertools.product(*(choice.widths for choice in self.space.choices)))
        return {plan: self.evaluation_of(plan) for plan in dict.fromkeys(every)}

    def optimum(self, *, depth: bool = True) -> float:
        """The best score within the limit; without `depth`, of the plans that keep all blocks."""
        return max(found.score for plan, found in self.plans.items() if found.feasible and (depth or not plan.dropped))

    def solve(self, searcher: SearcherFactory, trials: int, seed: int, in_flight: int = 1) -> list[Evaluation]:
        """The evaluations that `searcher` requested, in order. Up to `in_flight` plans are not answered when it asks."""
        return requested(self.space, self.evaluation_of, searcher, trials, seed, in_flight)
