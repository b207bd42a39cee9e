"""Surrogate search: Bayesian optimisation with mutated plans as proposals. It is the control of the agents.

It has everything that ppo_lagrangian.py has except the agent: the start, the initial design, the surrogate and the acquisition
function are the same. What it proposes are mutations of the best plans so far. An agent earns its place where it beats this.

Source: constrained expected improvement over candidates near the best points, as in SCBO (Eriksson and Poloczek, AISTATS 2021)
without its trust region.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.search.acquisition import ask_best
from pipeline.search.ask_tell import Questions, SearchState, ask_and_tell
from pipeline.search.believe import believed
from pipeline.search.problem import Evaluation, SearchSpace
from pipeline.search.start import begin
from pipeline.search.surrogate import fit, fractions, snap

__all__ = ["best_plans", "mutations", "surrogate_search"]

Floats = NDArray[np.float64]

PROPOSALS = 512
PARENTS = 8
"""Number of the best plans that are mutated."""
CHANGED_GROUPS = 3
"""Mean number of groups that a mutation changes."""
REACH = 0.2
"""Standard deviation of a change, as a share of a group's channels."""


@ask_and_tell
def surrogate_search(state: SearchState) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`."""
    yield from begin(state)
    generator = np.random.default_rng(state.problem.seed)
    while state.asked < state.problem.trials and not state.exhausted:
        answers = believed(state)
        model = fit(state.space, answers)
        kept = mutations(state.space, best_plans(answers), generator)
        yield from ask_best(state, model, kept, answers)


def mutations(
    space: SearchSpace,
    parents: Sequence[Evaluation],
    generator: np.random.Generator,
    count: int = PROPOSALS,
    small_reach: float | None = None,
) -> Floats:
    """`count` mutations of `parents`, as kept fractions, (n, choices). A block is kept or dropped; a group changes by REACH.

    With `small_reach`, every second mutation, on average, changes its groups by that much only.
    """
    origins = np.stack([fractions(space, parent.plan) for parent in parents])
    origin = origins[generator.integers(len(origins), size=count)]
    changed = generator.random(origin.shape) < CHANGED_GROUPS / origin.shape[1]
    reach = REACH if small_reach is None else np.where(generator.random((count, 1)) < 0.5, REACH, small_reach)
    moved = np.clip(origin + reach * generator.standard_normal(origin.shape), 0.0, 1.0)
    blocks = np.asarray([choice.is_block for choice in space.choices])
    moved[:, blocks] = 1.0 - origin[:, blocks]
    return snap(space, np.where(changed, moved, origin))


def best_plans(answers: Sequence[Evaluation]) -> list[Evaluation]:
    """The PARENTS feasible plans with the highest scores; after them, those that violate the constraints least."""
    return sorted(answers, key=lambda answer: (max((0.0, *answer.violations)), -answer.score))[:PARENTS]
