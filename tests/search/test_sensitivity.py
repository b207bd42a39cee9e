"""Sensitivity: plans in the order of what is expected to change the outputs least, with channels alone and with blocks."""

from collections.abc import Mapping

import pytest
from helpers.toys_depth import DeepToy

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import search
from pipeline.search.problem import Choice, Evaluation, Problem, SearchSpace
from pipeline.search.searchers import SEARCHERS
from pipeline.search.sensitivity import path_of, probing_plans

WIDTHS = tuple(range(8, 65, 8))
SPACE = SearchSpace(tuple(Choice(name, 64, WIDTHS, macs_share=0.4, params_share=0.4) for name in ("robust", "fragile")))


def distances(space: SearchSpace, of: Mapping[str, float]) -> dict[ChannelPlan, float]:
    """A distance that grows with the square of the removed share, times `of`."""
    return {
        plan: of[name] * (1 - plan[name] / choice.channels) ** 2
        for choice, (name, plans) in zip(space.choices, probing_plans(space).items(), strict=True)
        for plan in plans
    }


def test_each_probing_plan_changes_one_group() -> None:
    plans = probing_plans(SPACE)

    assert [dict(plan.widths) for plan in plans["robust"]] == [{"robust": 48, "fragile": 64}, {"robust": 32, "fragile": 64}]
    assert [dict(plan.widths) for plan in plans["fragile"]] == [{"robust": 64, "fragile": 48}, {"robust": 64, "fragile": 32}]


def test_channels_are_taken_from_the_group_that_changes_the_outputs_least() -> None:
    path = path_of(SPACE, distances(SPACE, {"robust": 1.0, "fragile": 100.0}))

    assert path(0.6)["fragile"] > path(0.6)["robust"]
    assert path(1.0) == SPACE.dense()
    assert path(0.0) == SPACE.thinnest()


def test_equal_groups_keep_equal_widths_because_distances_grow_faster_than_savings() -> None:
    path = path_of(SPACE, distances(SPACE, {"robust": 1.0, "fragile": 1.0}))

    assert abs(path(0.5)["fragile"] - path(0.5)["robust"]) <= 8


def test_a_larger_share_saves_less() -> None:
    path = path_of(SPACE, distances(SPACE, {"robust": 1.0, "fragile": 7.0}))
    kept = [sum(dict(path(step / 10).widths).values()) for step in range(11)]

    assert kept == sorted(kept)


def test_groups_whose_outputs_do_not_move_at_all_are_the_first_to_lose_channels() -> None:
    path = path_of(SPACE, distances(SPACE, {"robust": 0.0, "fragile": 1.0}))

    assert dict(path(0.55).widths) == {"robust": 8, "fragile": 64}


@pytest.mark.parametrize("name", ["knapsack", "ppo-lagrangian", "evolution", "tpe"])
def test_a_search_with_a_path_starts_on_it(name: str) -> None:
    asked: list[ChannelPlan] = []
    path = path_of(SPACE, distances(SPACE, {"robust": 1.0, "fragile": 100.0}))

    def evaluate(plan: ChannelPlan) -> Evaluation:
        asked.append(plan)
        return Evaluation(plan, sum(dict(plan.widths).values()), (sum(dict(plan.widths).values()) / 128 - 0.7,))

    search(SEARCHERS[name], Problem(SPACE, evaluate, 3, constraints=1, seed=0, path=path))

    assert asked[:2] == [path(0.5), path(0.75) if asked[0]["robust"] + asked[0]["fragile"] <= 0.7 * 128 else path(0.25)]


DEEP = DeepToy((1.0, 1.0, 1.0)).space


def deep_distances(of: Mapping[str, float]) -> dict[ChannelPlan, float]:
    """A distance that grows with the square of the removed share, times `of`; a dropped block has lost all of it."""
    found = {}
    for number, (name, plans) in enumerate(probing_plans(DEEP).items()):
        channels = DEEP.choices[number].channels
        found |= {plan: of.get(name, 100.0) * (1 - DEEP.widths_in(plan)[number] / channels) ** 2 for plan in plans}
    return found


def test_each_block_is_dropped_alone() -> None:
    plans = probing_plans(DEEP)

    assert plans["block2"] == (DEEP.plan_of([64, 1, 64, 0, 64, 1, 64, 64]),)
    assert [plan["inner2"] for plan in plans["inner2"]] == [48, 32]


def test_the_block_that_changes_the_outputs_least_is_dropped_first() -> None:
    path = path_of(DEEP, deep_distances({"block1": 30.0, "block2": 1.0, "block3": 5.0}))

    assert [path(share).dropped for share in (1.0, 0.8, 0.6)] == [(), ("block2",), ("block2", "block3")]
    assert path(1.0) == DEEP.dense()


def test_channels_are_removed_where_blocks_are_dearer_and_both_where_that_is_cheapest() -> None:
    dear, mixed = deep_distances({"stem": 0.1, "head": 0.1}), deep_distances({"block3": 0.01, "stem": 0.1, "head": 0.1})

    assert path_of(DEEP, dear)(0.85).dropped == ()
    assert path_of(DEEP, dear)(0.85)["stem"] < 64
    assert path_of(DEEP, mixed)(0.65).dropped == ("block3",)
    assert path_of(DEEP, mixed)(0.65)["stem"] < 64


def test_the_more_a_dropped_block_saves_the_more_blocks_a_plan_of_the_same_share_drops() -> None:
    path = path_of(DEEP, deep_distances(dict.fromkeys(("block1", "block2", "block3"), 2.0) | {"stem": 1.5, "head": 1.5}))
    saved = {gain: [len(path(share, gain).dropped) for share in (0.9, 0.8, 0.7)] for gain in (0.25, 4.0)}

    assert sum(saved[0.25]) < sum(saved[4.0])
