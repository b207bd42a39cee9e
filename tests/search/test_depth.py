"""Searchers with blocks: each of them drops blocks as well as channels, and asks for plans in their one form."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from helpers.toys import best_feasible
from helpers.toys_depth import DeepToy

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import answered
from pipeline.search.environment import observe
from pipeline.search.initial_design import DROPPED, design
from pipeline.search.knapsack import fill
from pipeline.search.optuna_search import suggested
from pipeline.search.policy import Agent, AgentSettings
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.searchers import SEARCHERS
from pipeline.search.start import block_gain, blocks_first, find_start
from pipeline.search.surrogate import fit, fractions, snap
from pipeline.search.uniform import bisect
from pipeline.stages.block_losses import losses_in

LEARNERS = ("ppo-lagrangian", "ddpg-entropy", "tpe")
QUICK = ("knapsack", "greedy", "evolution", "uniform", "random")
TOY = DeepToy()
SPACE = TOY.space


UNEVEN = DeepToy(worth=(4.0, 25.0, 10.0), limit=0.6)
"""The same space. The best plan drops the first block, keeps the second whole, and has few channels in the third. With all blocks,
the best plan is worse by a fifth."""

TRIALS = 10


@functools.cache
def found_by(name: str) -> list[Evaluation]:
    return UNEVEN.solve(SEARCHERS[name], TRIALS, seed=1)


def asked_by(name: str) -> list[ChannelPlan]:
    return [found.plan for found in found_by(name)]


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_searcher_drops_blocks_and_asks_only_for_plans_that_exist(name: str) -> None:
    plans = asked_by(name)

    assert len(plans) <= TRIALS
    assert set(plans) <= set(TOY.plans)
    assert any(plan.dropped for plan in plans)


@pytest.mark.parametrize("name", QUICK)
def test_the_same_seed_drops_the_same_blocks(name: str) -> None:
    assert [asked.plan for asked in UNEVEN.solve(SEARCHERS[name], TRIALS, seed=1)] == asked_by(name)


WITHOUT_MODEL = {"uniform": 0.85, "random": 0.7, "ppo-lagrangian-faithful": 0.7}
"""They have no model of the costs; the last one learns after hundreds of trials only."""


@pytest.mark.parametrize("name", SEARCHERS)
def test_ten_trials_bring_a_searcher_near_the_best_of_all_plans(name: str) -> None:
    """The best of 5,400 plans, tried one by one."""
    assert UNEVEN.optimum(depth=False) < 0.8 * UNEVEN.optimum()
    assert best_feasible(found_by(name)) >= WITHOUT_MODEL.get(name, 0.95) * UNEVEN.optimum()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in WITHOUT_MODEL])
def test_sixty_trials_bring_a_searcher_nearer(name: str) -> None:
    shares = [best_feasible(UNEVEN.solve(SEARCHERS[name], 60, seed)) / UNEVEN.optimum() for seed in range(2)]

    assert min(shares) >= 0.97


@pytest.mark.parametrize("name", ["knapsack", "greedy", *(pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS)])
def test_sixty_trials_find_a_plan_that_no_plan_with_all_blocks_reaches(name: str) -> None:
    """The optimum of all plans drops blocks. With all blocks, the best plan is worse by a fifth."""
    found = best_feasible(TOY.solve(SEARCHERS[name], trials=60, seed=0))

    assert TOY.optimum(depth=False) < found
    assert found >= 0.93 * TOY.optimum()


def test_a_plan_has_no_width_for_what_is_inside_a_dropped_block() -> None:
    plan = SPACE.plan_of([64, 0, 8, 1, 16, 1, 32, 48])

    assert plan == ChannelPlan((("stem", 64), ("inner2", 16), ("inner3", 32), ("head", 48)), ("block1",))
    assert SPACE.widths_in(plan) == (64, 0, 64, 1, 16, 1, 32, 48)
    assert SPACE.plan_of(SPACE.widths_in(plan)) == plan


def test_dense_keeps_all_blocks_thinnest_none_and_uniform_spreads_them() -> None:
    blocks = ("block1", "block2", "block3")

    assert (SPACE.dense().dropped, SPACE.thinnest().dropped, SPACE.uniform(0.1).dropped) == ((), blocks, ())
    assert SPACE.uniform(1.0, depth=0.67).dropped == ("block1",)
    assert SPACE.uniform(1.0, depth=0.0).dropped == blocks


def test_blocks_that_lose_least_for_what_they_save_are_dropped_first() -> None:
    """block1 loses most; block2 loses as much as block3, and saves twice as many MACs"""
    losses = {"block1": 3.0, "block2": 1.0, "block3": 1.0}
    space = losses_in(SPACE, losses)
    space = replace(space, choices=tuple(replace(choice, macs_share=0.4) if choice.name == "block2" else choice for choice in space.choices))  # fmt: skip

    assert [set(space.uniform(1.0, depth).dropped) for depth in (0.67, 0.34, 0.0)] == [
        {"block2"},
        {"block2", "block3"},
        set(losses),
    ]
    assert space.uniform(1.0).dropped == ()


def test_plans_that_differ_only_inside_a_dropped_block_look_alike_to_a_surrogate() -> None:
    rows = np.asarray([[1.0, 0.2, 0.1, 0.9, 0.5, 1.0, 0.5, 1.0], [1.0, 0.4, 0.9, 0.9, 0.5, 1.0, 0.5, 1.0]])
    snapped = snap(SPACE, rows)

    np.testing.assert_array_equal(snapped[0], snapped[1])
    np.testing.assert_array_equal(snapped[0], fractions(SPACE, SPACE.plan(rows[0].tolist())))


def test_each_block_is_missing_from_its_share_of_the_initial_design() -> None:
    asked = list(design(SPACE, np.full(len(SPACE.choices), 0.5), trials=20, seed=0))
    for name in ("block1", "block2", "block3"):
        assert sum(name in plan.dropped for plan in asked) == round(DROPPED * 20)


def test_a_search_starts_from_the_better_of_fewer_channels_and_fewer_blocks() -> None:
    """Blocks that are worth little and cost much: without most of them is better. Blocks worth most of the score: fewer channels."""
    found = {}
    for worth in ((2.0, 2.0, 2.0), (60.0, 60.0, 60.0)):
        toy = DeepToy(worth)
        start = answered(Problem(SPACE, toy.evaluation_of, 12, constraints=1, seed=0), find_start, steps=12)
        found[worth] = toy.space.plan(start.tolist())

        assert toy.evaluation_of(found[worth]).feasible
    few, many = found.values()

    assert few.dropped
    assert not many.dropped


def test_without_blocks_a_search_starts_from_the_largest_uniform_share() -> None:
    space = replace(SPACE, choices=tuple(choice for choice in SPACE.choices if not choice.is_block))
    problem = Problem(space, TOY.evaluation_of, 6, constraints=1, seed=0)

    assert answered(problem, find_start, 6).tolist() == [bisect(problem, 6)] * len(space.choices)


def test_with_a_path_a_search_first_learns_what_blocks_gain() -> None:
    """One plan with half of the channels, one with half of the blocks, and then plans of the path with that gain."""
    asked: list[ChannelPlan] = []
    gains: set[float] = set()
    on_path: list[ChannelPlan] = []

    def path(share: float, block_gain: float = 1.0, /) -> ChannelPlan:
        gains.add(block_gain)
        on_path.append(SPACE.uniform(1.0, share))
        return on_path[-1]

    def evaluate(plan: ChannelPlan) -> Evaluation:
        asked.append(plan)
        return TOY.evaluation_of(plan)

    problem = Problem(SPACE, evaluate, 6, 1, 0, known=(TOY.evaluation_of(SPACE.dense()),), path=path)
    answered(problem, find_start, steps=6)

    assert asked[:2] == [SPACE.uniform(0.5), blocks_first(SPACE, 0.5)]
    assert asked[2:] == list(dict.fromkeys(on_path))
    assert [*gains] == [pytest.approx(block_gain(problem, *map(TOY.evaluation_of, asked[:2])))]


def test_the_gain_of_blocks_is_their_saving_per_mac_over_that_of_channels() -> None:
    """Channels halve a cost of 0.59 for 5 x 0.1 x 4/7 MACs; without two blocks, 0.52 are saved for 2 x 0.2 MACs."""
    dense, halved, without = (TOY.evaluation_of(plan) for plan in (SPACE.dense(), SPACE.uniform(0.5), blocks_first(SPACE, 0.5)))
    problem = Problem(SPACE, TOY.evaluation_of, 6, 1, 0, known=(dense,))
    channels = (0.1 + 0.1 + 3 * 0.13) / 2 / (5 * 0.1 * 0.5 / (1 - 8 / 64))

    assert len(without.plan.dropped) == 2
    assert block_gain(problem, halved, without) == pytest.approx((2 * 0.26 / (2 * 0.2)) / channels)
    assert block_gain(replace(problem, known=()), halved, without) == 1.0
    assert block_gain(problem, dense, without) == 1.0


def test_the_first_policy_of_an_agent_is_near_the_plan_that_the_search_starts_from() -> None:
    """drops block2, keeps the others, and has narrow and wide groups"""
    start = np.asarray([0.25, 1.0, 0.75, 0.0, 1.0, 1.0, 0.5, 0.25])
    torch.manual_seed(0)
    played = Agent(SPACE, 1, start, AgentSettings()).play(200, np.random.default_rng(0)).actions.mean(0)

    assert ((played[[1, 3, 5]] >= 0.5) == (start[[1, 3, 5]] >= 0.5)).all()
    np.testing.assert_allclose(played[[0, 2, 4, 6, 7]], start[[0, 2, 4, 6, 7]], atol=0.08)


def test_the_state_of_an_agent_counts_a_block_as_kept_or_dropped() -> None:
    """An action of 0.6 keeps a block whole, and one of 0.4 drops it whole."""
    kept, dropped = (observe(SPACE, np.asarray([[1.0, action]]))[0] for action in (0.6, 0.4))

    assert kept[6] == 0
    assert dropped[6] == pytest.approx(0.2 / 1.1)


LIMIT = 110.0


def test_knapsack_finds_the_best_sum_with_blocks_in_blocks() -> None:
    """group, block (group, block (group), group): brute force over all choices, for random values and costs"""
    contents, sizes = [0, 4, 0, 1, 0, 0], [3, 2, 3, 2, 3, 3]
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = [generator.random(size) for size in sizes]
        costs = [np.sort(generator.integers(1, 30, size)).astype(np.float64) for size in sizes]
        full = [size - 1 for size in sizes]
        best = -np.inf
        for picks in itertools.product(*(range(size) for size in sizes)):
            chosen = list(picks)
            if chosen[1] == 0:
                chosen[2:] = full[2:]
            elif chosen[3] == 0:
                chosen[4] = full[4]
            if chosen[1] == 0:
                chosen[5] = full[5]
            if sum(cost[pick] for cost, pick in zip(costs, chosen, strict=True)) <= LIMIT:
                best = max(best, sum(value[pick] for value, pick in zip(values, chosen, strict=True)))
        room = int(LIMIT - sum(cost.min() for cost in costs))
        picks = fill(values, costs, LIMIT, room, contents)[0]

        assert sum(value[pick] for value, pick in zip(values, picks, strict=True)) == pytest.approx(best)
        assert sum(cost[pick] for cost, pick in zip(costs, picks, strict=True)) <= LIMIT


def test_an_additive_surrogate_prices_the_absence_of_a_block() -> None:
    """With costs that are sums, the table of a block says what its absence saves at full width."""
    generator = np.random.default_rng(0)
    rows = snap(SPACE, generator.random((60, len(SPACE.choices))))
    model = fit(SPACE, [TOY.evaluation_of(SPACE.plan(row.tolist())) for row in rows], additive=True)
    saved = {
        choice.name: float(table[1][0] - table[0][0])
        for choice, (_, table) in zip(SPACE.choices, model.tables, strict=True)
        if choice.is_block
    }

    assert saved == pytest.approx(dict.fromkeys(saved, 0.26 / TOY.limit), rel=0.1)


def test_tpe_and_evolution_draw_a_block_from_a_category_and_a_width_from_a_range() -> None:
    trial = optuna.create_study().ask()
    for choice in SPACE.choices:
        suggested(trial, choice)
    kinds = {name: type(distribution) for name, distribution in trial.distributions.items()}

    assert kinds["block1"] is kinds["block2"] is kinds["block3"] is optuna.distributions.CategoricalDistribution
    assert kinds["stem"] is kinds["inner1"] is optuna.distributions.IntDistribution


def test_uniform_has_a_row_with_all_blocks_and_a_row_with_a_share_of_them() -> None:
    plans = asked_by("uniform")

    whole = {SPACE.uniform(number / 64) for number in range(65)}
    fewer = {SPACE.uniform(number / 64, number / 64) for number in range(65)}

    assert set(plans) <= whole | fewer
    assert set(plans) & whole - fewer
    assert set(plans) & fewer - whole


def test_knapsack_drops_the_block_that_costs_least_for_what_it_saves() -> None:
    """Three blocks that save the same; the third is worth least, then the second. Prices are found from evaluations alone."""
    toy = DeepToy(worth=(30.0, 12.0, 3.0), limit=0.85)
    asked = toy.solve(SEARCHERS["knapsack"], trials=30, seed=0)
    best = max((found for found in asked if found.feasible), key=lambda found: found.score)

    assert best.plan.dropped == ("block3",)
    assert best.score >= 0.98 * toy.optimum()
