"""Several budgets from one search: every plan counts for every budget, no plan is asked twice, and each budget reads its own limit."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from helpers.toys import SMOOTH, best_feasible, requested

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import SearchState
from pipeline.search.believe import believed
from pipeline.search.problem import Evaluation, Problem, Searcher, SearcherFactory
from pipeline.search.searchers import SEARCHERS
from pipeline.search.several_budgets import several_budgets
from pipeline.search.uniform import uniform

LIMITS = (0.6, 0.4, 0.25)
"""Shares of the cost of the dense plan of SMOOTH, which has four groups of nine widths."""
SLOW = ("ppo-lagrangian", "ddpg-entropy", "pretrained", "evolution", "tpe")


def evaluation_of(plan: ChannelPlan) -> Evaluation:
    found = [replace(SMOOTH, limit=limit).evaluation_of(plan) for limit in LIMITS]
    return replace(found[0], violations=tuple(each.violations[0] for each in found))


def under(limit: int, asked: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations under one of LIMITS."""
    return [replace(answer, violations=(answer.violations[limit],)) for answer in asked]


def shared(make: SearcherFactory, trials: int, seed: int = 0, in_flight: int = 1) -> list[Evaluation]:
    """The evaluations that one search for all LIMITS asked for."""
    budgets = [(place,) for place in range(len(LIMITS))]
    return requested(SMOOTH.space, evaluation_of, several_budgets(make, budgets), trials, seed, in_flight)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SEARCHERS])
@pytest.mark.parametrize("in_flight", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_every_searcher_finds_a_plan_for_each_budget_and_asks_for_none_twice(name: str, in_flight: int) -> None:
    asked = shared(SEARCHERS[name], 15, in_flight=in_flight)

    assert 3 <= len(asked) <= 15
    assert len({answer.plan for answer in asked}) == len(asked)
    thinnest = evaluation_of(SMOOTH.space.thinnest()).score
    found = [best_feasible(under(limit, asked)) for limit in range(3)]
    assert min(found) > thinnest or name == "ppo-lagrangian-faithful"  # it needs thousands of trials


def test_budgets_take_turns_and_each_is_told_its_own_violation_of_every_plan() -> None:
    """Three budgets with a plan each; the other two learn from it"""
    told: list[tuple[int, str, float]] = []

    class Listening:
        def __init__(self, problem: Problem) -> None:
            self.seed, self.space = problem.seed, problem.space

        def ask(self, n: int) -> list[ChannelPlan]:
            return [self.space.uniform((1 + self.seed) / 4)]

        def tell(self, answers: Sequence[Evaluation]) -> None:
            told.extend((self.seed, "told", answer.violations[0]) for answer in answers)

        def learn(self, others: Sequence[Evaluation]) -> None:
            told.extend((self.seed, "learned", answer.violations[0]) for answer in others)

    asked = shared(Listening, 3)

    assert [answer.plan for answer in asked] == [SMOOTH.space.uniform(share) for share in (0.25, 0.5, 0.75)]
    assert told == [
        (budget, "told" if budget == number else "learned", answer.violations[budget])
        for number, answer in enumerate(asked)
        for budget in range(3)
    ]


def test_the_same_seed_and_the_same_number_of_plans_at_once_ask_the_same_plans() -> None:
    """So a run that was killed is continued from its journal"""
    first, again = (shared(SEARCHERS["uniform-top-up"], 15, in_flight=4) for _ in range(2))

    assert first == again
    assert len({answer.plan for answer in first}) == len(first)


def test_a_plan_that_several_budgets_ask_for_is_evaluated_once() -> None:
    """Each bisection begins at one half. The limits of 60 % and 40 % part there, and those of 40 % and 25 % part at a quarter"""
    asked = [answer.plan for answer in shared(uniform, 12)]

    assert asked[0] == SMOOTH.space.uniform(0.5)
    assert asked.count(SMOOTH.space.uniform(0.5)) == 1
    for limit, share in enumerate(LIMITS):
        alone = requested(SMOOTH.space, replace(SMOOTH, limit=share).evaluation_of, uniform, 4, 0)
        assert {answer.plan for answer in alone} <= {*asked, SMOOTH.space.thinnest()}
        assert best_feasible(under(limit, shared(uniform, 12))) >= best_feasible(alone)


def test_a_surrogate_is_fitted_to_the_plans_of_all_budgets() -> None:
    """The searcher asked for one plan, and learns of another one"""
    state = SearchState(Problem(SMOOTH.space, SMOOTH.evaluation_of, 9, constraints=1, seed=0))
    own, other = (SMOOTH.evaluation_of(SMOOTH.space.uniform(share)) for share in (0.25, 0.5))
    state.answers.append(own)
    state.others.append(other)

    assert believed(state) == [other, own]
    state.pending.append(SMOOTH.space.uniform(0.75))
    assert believed(state)[:2] == [other, own]


def test_one_budget_has_the_searcher_itself() -> None:
    assert several_budgets(uniform, [(0,)]) is uniform


def test_a_function_that_searches_by_itself_is_called_for_each_budget_with_its_share_of_the_trials() -> None:
    seen: list[tuple[int, int, int]] = []

    def scan(problem: Problem) -> Searcher | None:
        seen.append((problem.trials, problem.constraints, len(problem.known[0].violations)))
        for step in range(100):
            problem.evaluate(problem.space.uniform(step / 100))
        return None

    asked = shared(scan, 8)

    assert seen == [(3, 1, 1), (3, 1, 1), (2, 1, 1)]
    assert len(asked) == 8
