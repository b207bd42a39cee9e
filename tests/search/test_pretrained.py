"""The search that starts on the proposals of the policy that is trained in advance."""

from dataclasses import replace

import pytest
from helpers.toys import CHAIN, TOYS, best_feasible, requested

from pipeline.core.plan import ChannelPlan
from pipeline.search.amortised_policy import path_of_policy
from pipeline.search.ask_tell import search
from pipeline.search.pretrained import PretrainedSettings, allowed_share, pretrained, search_from_path
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.searchers import SEARCHERS

SPACE = CHAIN.space
WITHOUT_AGENT = PretrainedSettings(agent=None)


def test_the_allowed_share_of_the_latency_follows_from_the_violation_of_the_dense_plan() -> None:
    """Budgets of 40 % and of 80 %: the dense network violates them by 1 / 0.4 - 1 and 1 / 0.8 - 1"""
    dense = Evaluation(SPACE.dense(), 90.0, (1.5, 0.25))

    assert allowed_share([dense]) == pytest.approx(0.4)
    assert allowed_share([]) == allowed_share([replace(dense, violations=(-0.1, 0.0))]) == 0.5


def test_the_first_trial_is_the_proposal_of_the_policy_for_the_budget() -> None:
    asked = CHAIN.solve(pretrained, trials=1, seed=0)

    assert [answer.plan for answer in asked] == [path_of_policy(SPACE)(allowed_share([CHAIN.evaluation_of(SPACE.dense())]))]


def test_the_path_is_followed_to_a_plan_that_uses_nearly_the_whole_budget() -> None:
    """The cost is the mean width, and the path is uniform: the answer is known"""

    def evaluation_of(plan: ChannelPlan) -> Evaluation:
        share = sum(dict(plan).values()) / (64 * len(SPACE.choices))
        return Evaluation(plan, 100 * share, (share**1.5 / 0.37 - 1,))

    asked: list[Evaluation] = []

    def evaluate(plan: ChannelPlan) -> Evaluation:
        asked.append(evaluation_of(plan))
        return asked[-1]

    problem = Problem(SPACE, evaluate, trials=4, constraints=1, seed=0, known=(evaluation_of(SPACE.dense()),))
    search(lambda problem: search_from_path(problem, SPACE.uniform, WITHOUT_AGENT), problem)

    assert max(answer.violations[0] for answer in asked if answer.feasible) > -0.15


def test_a_path_of_the_problem_replaces_the_policys() -> None:
    begun: list[ChannelPlan] = []

    def evaluate(plan: ChannelPlan) -> Evaluation:
        begun.append(plan)
        return CHAIN.evaluation_of(plan)

    search(pretrained, Problem(SPACE, evaluate, trials=1, constraints=1, seed=0, path=lambda share: SPACE.thinnest()))

    assert begun == [SPACE.thinnest()]


@pytest.mark.parametrize("name", ["chain", "cliff"])
def test_without_its_agent_it_comes_close_to_the_brute_force_optimum(name: str) -> None:
    toy = TOYS[name]
    asked = requested(
        toy.space,
        toy.evaluation_of,
        lambda problem: search_from_path(problem, path_of_policy(problem.space), WITHOUT_AGENT),
        trials=30,
        seed=0,
    )

    assert best_feasible(asked) >= 0.95 * toy.optimum()


def test_it_is_a_searcher_by_name() -> None:
    assert SEARCHERS["pretrained"] is pretrained
