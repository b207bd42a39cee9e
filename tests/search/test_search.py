"""Searchers: a contract that all of them keep, and their parts. That agents learn is shown in test_agents.py."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers.toys import IMPOSSIBLE, SMOOTH, best_feasible

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import search
from pipeline.search.lagrange_multipliers import PIDMultipliers, PIDSettings
from pipeline.search.problem import Choice, Evaluation, Problem, SearchSpace, TrialsSpent, nearest_width, widths_of
from pipeline.search.searchers import SEARCHERS
from pipeline.search.uniform import bisect

LEARNERS = ("ppo-lagrangian", "ddpg-entropy", "pretrained")
"""Searchers that train for half a second after each trial."""


def trials_of(name: str) -> int:
    return 10 if name in LEARNERS else 20


def solve(name: str, evaluation_of: Callable[[ChannelPlan], Evaluation], constraints: int = 1) -> list[Evaluation]:
    """What the searcher asked of an evaluator that judges as `assess` does."""
    trials = 8 if name in LEARNERS else 12
    asked: list[Evaluation] = []

    def evaluate(plan: ChannelPlan) -> Evaluation:
        if len(asked) == trials:
            raise TrialsSpent
        asked.append(evaluation_of(plan))
        return asked[-1]

    with contextlib.suppress(TrialsSpent):
        search(SEARCHERS[name], Problem(SMOOTH.space, evaluate, trials, constraints, seed=0))
    return asked


@functools.cache
def asked_by(name: str) -> list[Evaluation]:
    """What the searcher asks on the smooth toy."""
    return SMOOTH.solve(SEARCHERS[name], trials_of(name), seed=3)


@pytest.mark.parametrize("name", SEARCHERS)
class TestSearcherContract:
    """What holds for every searcher; a new one inherits it by standing in the list."""

    def test_it_asks_no_more_than_its_trials(self, name: str) -> None:
        assert 1 <= len(asked_by(name)) <= trials_of(name)

    def test_the_same_seed_asks_the_same_plans(self, name: str) -> None:
        again = SMOOTH.solve(SEARCHERS[name], trials_of(name), seed=3)

        assert [asked.plan for asked in again] == [asked.plan for asked in asked_by(name)]

    def test_it_survives_a_limit_that_no_plan_keeps(self, name: str) -> None:
        """Every plan is far over: there is nothing to learn but that."""
        asked = IMPOSSIBLE.solve(SEARCHERS[name], trials=8, seed=0)

        assert asked
        assert not any(found.feasible for found in asked)

    def test_every_plan_has_widths_on_offer(self, name: str) -> None:
        offers = {choice.name: choice.widths for choice in SMOOTH.space.choices}

        for asked in asked_by(name):
            assert all(width in offers[group] for group, width in asked.plan)

    def test_it_finds_a_plan_within_the_limit(self, name: str) -> None:
        assert best_feasible(asked_by(name)) > 0

    def test_it_needs_no_limit_at_all(self, name: str) -> None:
        """A budget on accuracy alone does not steer the search."""
        asked = solve(name, lambda plan: replace(SMOOTH.evaluation_of(plan), violations=()), constraints=0)

        whole = SMOOTH.evaluation_of(SMOOTH.space.dense()).score
        assert max((found.score for found in asked), default=whole) >= 0.9 * whole  # who asks nothing keeps the whole network

    def test_it_finds_a_plan_within_two_limits(self, name: str) -> None:
        """The second charges the groups in the opposite order."""
        other = replace(SMOOTH, cost=SMOOTH.cost[::-1])
        asked = solve(
            name,
            lambda plan: replace(
                SMOOTH.evaluation_of(plan),
                violations=SMOOTH.evaluation_of(plan).violations + other.evaluation_of(plan).violations,
            ),
            2,
        )

        assert any(found.feasible for found in asked)

    def test_scores_may_be_negative(self, name: str) -> None:
        """Minus a loss, in a task of the user's own."""
        asked = solve(name, lambda plan: replace(SMOOTH.evaluation_of(plan), score=SMOOTH.evaluation_of(plan).score - 5000))

        assert any(found.feasible for found in asked)

    def test_one_trial_is_one_trial(self, name: str) -> None:
        assert len(SMOOTH.solve(SEARCHERS[name], trials=1, seed=0)) == 1


def test_bisection_ends_at_the_largest_uniform_width_within_the_limit() -> None:
    """Cost is the mean width and the limit one half: 32 of 64 channels."""
    asked = SMOOTH.solve(SEARCHERS["uniform"], trials=20, seed=0)
    best = max((found for found in asked if found.feasible), key=lambda found: found.score)

    assert set(dict(best.plan.widths).values()) == {32}


def test_bisection_returns_zero_when_nothing_is_feasible() -> None:
    problem = Problem(SMOOTH.space, lambda plan: Evaluation(plan, 1.0, (0.5,)), 10, constraints=1, seed=0)

    assert bisect(problem, 6) == 0.0


def test_multipliers_rise_while_the_limit_is_broken_and_fall_when_it_is_kept() -> None:
    multipliers = PIDMultipliers(1, PIDSettings())
    history = []
    for violation in [0.2] * 5 + [-0.2] * 10:
        multipliers.update(np.array([violation]))
        history.append(float(multipliers.values[0]))

    assert history[:5] == sorted(history[:5])
    assert history[4] > 0
    assert history[-1] == 0.0


def test_each_constraint_has_its_own_multiplier() -> None:
    multipliers = PIDMultipliers(2, PIDSettings())
    multipliers.update(np.array([0.3, -0.3]))

    assert multipliers.values[0] > 0
    assert multipliers.values[1] == 0


@pytest.mark.parametrize(
    ("channels", "bundle", "step", "expected"),
    [
        (16, 1, 4, (4, 8, 12, 16)),
        (10, 1, 4, (4, 8, 10)),  # everything is always on offer
        (3, 1, 8, (3,)),  # narrower than a step: nothing to choose
        (512, 1, 8, (*range(16, 512, 8), 512)),  # no layer is emptied below a thirty-second
        (8, 4, 8, (2, 4, 6, 8)),  # four outputs to a channel: two channels are a step of eight
    ],
)
def test_widths_on_offer_are_multiples_of_the_step(channels: int, bundle: int, step: int, expected: tuple[int, ...]) -> None:
    assert widths_of(channels, bundle, step) == expected


def test_a_tie_between_widths_goes_to_the_wider() -> None:
    assert nearest_width(Choice("a", 16, (4, 8, 16), 0, 0), 12 / 16) == 16


def test_the_ends_of_the_space() -> None:
    space = SearchSpace((Choice("a", 16, (4, 8, 16), 0, 0), Choice("b", 32, (8, 32), 0, 0)))

    assert space.thinnest() == ChannelPlan((("a", 4), ("b", 8)))
    assert space.dense() == ChannelPlan((("a", 16), ("b", 32)))
