"""Recorded plans: which are drawn, how they are stored, and the search problems that are made from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plan_tables
import pytest
from plan_draws import BUDGETS, next_fine_tuned, next_plan
from plan_lines import FOLDER, Recording, read_recording, space_facts, store_recording
from plan_tables import PlanTable, check, table_of
from table_searches import outcome, uniform_within

from pipeline.search.problem import Choice, Evaluation, SearchSpace

SPACE = SearchSpace(tuple(Choice(f"group{n}", 64, tuple(range(4, 65, 4)), 0.3, 0.3) for n in range(4)))
COST, VALUE = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])


def figures(widths: list[int]) -> dict[str, float]:
    """Latency falls with the channels, and the score falls steeply with what is lost of each group."""
    kept = np.array(widths) / 64
    return {"ratio": float(0.05 + 0.95 * kept @ COST), "score": float(90 * np.exp(-6 * (1 - kept) ** 2 @ VALUE))}


def recorded(count: int) -> Recording:
    lines: list[dict[str, Any]] = []
    while len(lines) < count:
        kind, widths = next_plan(SPACE, lines)
        lines.append({"kind": kind, "widths": widths, "ratio_error": 0.001, **figures(widths)})
    return Recording(json.loads(json.dumps({"choices": space_facts(SPACE)})), lines)


@pytest.fixture(scope="module")
def recording() -> Recording:
    return recorded(160)


@pytest.fixture(scope="module")
def table(recording: Recording) -> PlanTable:
    return table_of(recording)


def test_no_plan_is_drawn_twice_and_all_kinds_are(recording: Recording) -> None:
    assert len({tuple(line["widths"]) for line in recording.lines}) == 160
    assert {line["kind"] for line in recording.lines} == {"uniform", "random", "neighbour"}


def test_a_recording_that_was_interrupted_goes_on_with_the_same_plans(recording: Recording) -> None:
    assert [next_plan(SPACE, recording.lines[:number])[1] for number in (10, 100, 159)] == [
        recording.lines[number]["widths"] for number in (10, 100, 159)
    ]


def test_neighbours_of_good_plans_are_better_and_nearer_to_a_budget_than_random_ones(recording: Recording) -> None:
    near: dict[str, list[float]] = {"random": [], "neighbour": []}
    for line in recording.lines[96:]:
        near[line["kind"]].append(min(abs(line["ratio"] / budget - 1) for budget in BUDGETS))

    assert np.median(near["neighbour"]) < np.median(near["random"]) / 2


def test_plans_to_be_fine_tuned_are_near_the_budgets_and_none_comes_twice(recording: Recording) -> None:
    done: list[dict[str, Any]] = []
    for _ in range(12):
        done.append({"widths": next_fine_tuned(recording.plans, done)})
    ratios = [figures(line["widths"])["ratio"] for line in done]

    assert len({tuple(line["widths"]) for line in done}) == 12
    assert all(0.9 * budget <= ratio <= 1.01 * budget for ratio, budget in zip(ratios, 4 * BUDGETS, strict=True))


def test_a_stored_recording_is_read_back_and_a_line_that_was_cut_off_is_left_out(recording: Recording, tmp_path: Path) -> None:
    store_recording(recording, tmp_path / "net.jsonl.xz")
    text = "".join(json.dumps(line) + "\n" for line in (recording.header, *recording.lines))
    (tmp_path / "net.jsonl").write_text(text[:-10])
    stored, growing = (read_recording(tmp_path / name) for name in ("net.jsonl.xz", "net.jsonl"))

    assert stored == recording
    assert growing is not None
    assert growing.lines == recording.lines[:-1]
    assert stored is not None
    assert stored.space == SPACE


def test_a_table_predicts_plans_that_it_was_not_fitted_to(recording: Recording) -> None:
    found = check(recording)

    assert found.plans == 32
    assert found.latency_error < 0.01
    assert found.score_rank > 0.99
    assert found.score_error < 1


def test_a_plan_has_the_same_noise_in_one_search_and_another_in_the_next(table: PlanTable) -> None:
    plan, first, again, other = SPACE.uniform(0.5), *(table.evaluations(0.5, seed) for seed in (0, 0, 1))

    assert first(plan) == first(plan) == again(plan)
    assert first(plan) != other(plan)


def test_the_noise_of_a_table_is_that_of_plans_that_were_measured_twice(recording: Recording) -> None:
    generator = np.random.default_rng(0)
    again = [
        {"kind": "again", "widths": line["widths"], "ratio": line["ratio"] * np.exp(0.03 * 2**0.5 * generator.standard_normal())}
        for line in recording.lines
    ]

    assert plan_tables.noise_of(replace(recording, lines=[*recording.lines, *again])) == pytest.approx(0.03, rel=0.2)


def test_a_plan_that_was_within_the_budget_by_luck_is_no_result(table: PlanTable) -> None:
    """The better plan is over the budget. A lucky measurement said otherwise; the result is the other one."""
    small, large = SPACE.uniform(0.25), SPACE.uniform(0.75)
    budget = 1.01 * float(table.ratios(table.kept(small))[0])
    asked = [Evaluation(large, 80.0, (-0.01,)), Evaluation(small, 20.0, (-0.2,))]

    assert outcome(table, budget, asked)["score"] == 20.0
    assert outcome(table, budget, asked[:1])["score"] == pytest.approx(
        float(table.scores(table.kept(uniform_within(table, budget)))[0]), abs=1e-3
    )


def test_the_stored_plans_of_resnet20_are_1500_different_ones_of_its_space() -> None:
    found = read_recording(FOLDER / "resnet20.jsonl.xz")
    assert found is not None
    widths = [tuple(line["widths"]) for line in found.plans]

    assert len(set(widths)) == len(widths) >= 1500
    assert all(each == found.space.widths_in(found.space.plan_of(each)) for each in widths)
    assert all(width in choice.widths for each in widths for width, choice in zip(each, found.space.choices, strict=True))
