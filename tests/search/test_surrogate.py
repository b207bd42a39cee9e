"""Surrogate: what a plan would be judged, from the plans that were."""

import numpy as np
import pytest
from helpers.toys import CHAIN, RAGGED, SMOOTH, Toy

from pipeline.search.acquisition import highest_acquisition
from pipeline.search.knapsack import fill
from pipeline.search.problem import Choice, Evaluation, SearchSpace
from pipeline.search.surrogate import fit, fractions, snap


def plans(toy: Toy, count: int, seed: int = 0) -> np.ndarray:
    """(count, groups) fractions on offer, at random."""
    return snap(toy.space, np.random.default_rng(seed).random((count, len(toy.cost))))


def answers(toy: Toy, count: int) -> list[Evaluation]:
    return [toy.evaluation_of(toy.space.plan(row.tolist())) for row in plans(toy, count)]


@pytest.mark.parametrize(("toy", "error"), [(SMOOTH, 0.01), (RAGGED, 0.01), (CHAIN, 0.1)], ids=["smooth", "ragged", "chain"])
def test_forty_answers_foretell_the_rest(toy: Toy, error: float) -> None:
    """Straight costs, costs in steps, and costs that are products of neighbours."""
    rest = plans(toy, 500, seed=1)
    predicted = fit(toy.space, answers(toy, 40)).predict(rest)

    assert np.sqrt(np.mean((predicted.score - toy.scores(rest)) ** 2)) < 1.0
    assert np.sqrt(np.mean((predicted.violations[:, 0] - toy.violations(rest)) ** 2)) < error


def test_it_knows_what_it_was_told_and_doubts_what_it_was_not() -> None:
    told = answers(SMOOTH, 10)
    predicted = fit(SMOOTH.space, told).predict(np.stack([fractions(SMOOTH.space, each.plan) for each in told]))
    elsewhere = fit(SMOOTH.space, told).predict(plans(SMOOTH, 100, seed=2))

    np.testing.assert_allclose(predicted.score, [each.score for each in told], atol=0.5)
    assert predicted.score_error.max() < np.median(elsewhere.score_error)


def test_one_answer_is_enough_to_begin_with() -> None:
    predicted = fit(SMOOTH.space, [SMOOTH.evaluation_of(SMOOTH.space.dense())]).predict(plans(SMOOTH, 5))

    np.testing.assert_allclose(predicted.score, 100.0)


def test_plans_without_constraints_have_a_score_only() -> None:
    told = [Evaluation(each.plan, each.score, ()) for each in answers(SMOOTH, 10)]

    assert fit(SMOOTH.space, told).predict(plans(SMOOTH, 5)).violations.shape == (5, 0)


def test_tables_add_up_to_the_prediction_of_an_additive_model() -> None:
    model = fit(CHAIN.space, answers(CHAIN, 30), additive=True)
    rows = plans(CHAIN, 20, seed=3)
    predicted = model.predict(rows)
    widths = [np.asarray(choice.widths) / choice.channels for choice in CHAIN.space.choices]
    places = [[int(np.flatnonzero(w == fraction)[0]) for w, fraction in zip(widths, row, strict=True)] for row in rows]
    sums = [sum(costs[p] for (_, costs), p in zip(model.tables, row, strict=True)) for row in places]

    np.testing.assert_allclose(np.asarray(sums)[:, 0] + model.violations[0].constant, predicted.violations[:, 0], atol=1e-9)


def test_snapping_is_what_a_plan_does() -> None:
    space = SearchSpace((Choice("a", 16, (4, 8, 16), 0, 0), Choice("b", 10, (4, 8, 10), 0, 0)))
    wanted = np.random.default_rng(0).random((200, 2))
    wanted[0] = 12 / 16, 0.6  # ties

    for row, kept in zip(wanted, snap(space, wanted), strict=True):
        assert space.plan(row.tolist()) == space.plan(kept.tolist())
        np.testing.assert_array_equal(fractions(space, space.plan(row.tolist())), kept)


def test_what_promises_most_is_new_and_within() -> None:
    """Of the dense plan (best, far over), a middling one, and one that is known."""
    told = answers(SMOOTH, 30)
    model = fit(SMOOTH.space, told)
    known = max((each for each in told if each.feasible), key=lambda each: each.score)
    rows = np.stack([np.ones(4), snap(SMOOTH.space, np.array([[0.9, 0.5, 0.6, 0.25]]))[0], fractions(SMOOTH.space, known.plan)])

    assert highest_acquisition(model, rows, told) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_knapsack_is_filled_as_by_trying_all(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = [generator.random(4) for _ in range(4)]
    costs = [generator.random(4) for _ in range(4)]
    picks = np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)
    worth = sum(value[picks[:, i]] for i, value in enumerate(values))
    spent = sum(cost[picks[:, i]] for i, cost in enumerate(costs))
    best = worth[spent <= 2.0].max()
    found = fill(values, costs, 2.0, bins=10_000)[0]

    assert sum(cost[pick] for cost, pick in zip(costs, found, strict=True)) <= 2.0
    assert sum(value[pick] for value, pick in zip(values, found, strict=True)) == pytest.approx(best, abs=1e-3)


def test_a_knapsack_too_small_gets_the_cheapest() -> None:
    assert fill([np.array([1.0, 2.0])] * 2, [np.array([0.5, 0.9]), np.array([0.9, 0.4])], 0.1, 100).tolist() == [[0, 1]]
