"""The controls of the agents: the same search without an agent, and a uniform plan whose remaining budget is spent."""

import numpy as np
import pytest
from helpers.toys import TOYS, best_feasible
from helpers.toys_depth import DeepToy

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import answered, search
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.searchers import SEARCHERS
from pipeline.search.start import begin
from pipeline.search.surrogate_search import mutations

CHAIN = TOYS["chain"]


@pytest.mark.parametrize("name", ["surrogate", "ppo-lagrangian"])
def test_the_agent_and_its_control_begin_with_the_same_plans(name: str) -> None:
    """So what differs afterwards is what the agent gains or loses."""
    begun: list[ChannelPlan] = []

    def evaluate(plan: ChannelPlan) -> Evaluation:
        begun.append(plan)
        return CHAIN.evaluation_of(plan)

    answered(Problem(CHAIN.space, evaluate, 3, constraints=1, seed=4), begin)

    assert [asked.plan for asked in CHAIN.solve(SEARCHERS[name], trials=3, seed=4)] == begun


def test_the_surrogate_search_comes_close_to_the_brute_force_optimum() -> None:
    assert best_feasible(CHAIN.solve(SEARCHERS["surrogate"], trials=40, seed=0)) >= 0.98 * CHAIN.optimum()


def test_a_mutation_changes_a_few_groups_of_a_parent_to_widths_on_offer() -> None:
    space = DeepToy().space
    parent = Evaluation(space.uniform(0.5), 1.0, ())
    plans = [space.plan(row.tolist()) for row in mutations(space, [parent], np.random.default_rng(0))]
    changed = [np.not_equal(space.widths_in(plan), space.widths_in(parent.plan)).sum() for plan in plans]

    assert 1 < np.mean(changed) < 4
    assert any(plan.dropped for plan in plans)


@pytest.mark.parametrize("name", ["chain", "ragged"])
def test_no_group_of_the_topped_up_plan_can_be_one_width_wider(name: str) -> None:
    """Enough trials for every group to be tried until it does not fit any more"""
    toy = TOYS[name]
    asked = toy.solve(SEARCHERS["uniform-top-up"], trials=60, seed=0)
    best = max((found for found in asked if found.feasible), key=lambda found: sum(dict(found.plan).values())).plan
    wider = []
    for number, choice in enumerate(toy.space.choices):
        widths = list(toy.space.widths_in(best))
        widths[number] = next((width for width in choice.widths if width > widths[number]), 0)
        wider += [toy.space.plan_of(widths)] if widths[number] else []

    assert len(asked) < 60
    assert not any(toy.evaluation_of(plan).feasible for plan in wider)


def test_the_topped_up_plan_spends_trials_and_budget_that_uniform_leaves() -> None:
    """ten groups of eight widths, whose costs differ: a uniform plan leaves a part of the budget"""
    uniform, topped = (TOYS["ragged"].solve(SEARCHERS[name], trials=30, seed=0) for name in ("uniform", "uniform-top-up"))

    def used(asked: list[Evaluation]) -> float:
        return max(found.violations[0] for found in asked if found.feasible)

    assert used(uniform) < used(topped) <= 0


def test_topping_up_asks_no_plan_after_its_last_trial() -> None:
    asked: list[ChannelPlan] = []

    def evaluate(plan: ChannelPlan) -> Evaluation:
        asked.append(plan)
        return CHAIN.evaluation_of(plan)

    search(SEARCHERS["uniform-top-up"], Problem(CHAIN.space, evaluate, 8, constraints=1, seed=0))

    assert len(asked) == 8
