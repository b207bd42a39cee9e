"""Divergence: a loss that is no number, or grows without bound, and nothing else."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.training.divergence import WINDOW, WITHIN, all_finite, ends_diverged, has_diverged, reference_loss

REFERENCE = reference_loss(start=2.0, chance_level=math.log(10), classes=10)
LIMIT = WITHIN * REFERENCE
calm = st.lists(st.floats(0, LIMIT / 2), max_size=30)


@given(calm)
def test_a_loss_below_the_limit_is_training(losses: list[float]) -> None:
    assert not has_diverged(losses, REFERENCE)


@given(calm, st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_loss_that_is_no_finite_number_is_divergence_at_once(losses: list[float], last: float) -> None:
    assert has_diverged([*losses, last], REFERENCE)


@given(calm, st.floats(LIMIT * 1.01, 1e30))
def test_a_loss_that_stays_above_the_limit_is_divergence(losses: list[float], high: float) -> None:
    assert has_diverged([*losses, *[high] * WINDOW], REFERENCE)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_an_epoch_must_end_with_less_than_twice_the_loss_of_knowing_nothing(losses: list[float]) -> None:
    end = losses[-WINDOW:]

    assert ends_diverged(losses, REFERENCE) == (sum(end) / len(end) > 2 * REFERENCE)


def test_one_bad_batch_is_no_divergence() -> None:
    assert not has_diverged([1.0] * WINDOW + [4 * LIMIT], REFERENCE)


@pytest.mark.parametrize(
    ("start", "chance_level", "expected"),
    [(1e-9, 3.0, 3.0), (50.0, 3.0, 50.0), (math.nan, 3.0, 3.0), (math.inf, 3.0, 3.0), (0.0, 0.0, math.log(10))],
    ids=["a good start", "a bad start", "not a number", "infinite", "a teacher that tells nothing"],
)
def test_the_reference_is_the_loss_at_the_start_or_of_a_guess(start: float, chance_level: float, expected: float) -> None:
    assert reference_loss(start, chance_level, classes=10) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "value"), [("weight", math.nan), ("running_var", math.inf)])
def test_weights_and_statistics_must_be_finite(name: str, value: float) -> None:
    norm = nn.BatchNorm2d(3)
    before = all_finite(norm)
    with torch.no_grad():
        norm.state_dict()[name][1] = value

    assert (before, all_finite(norm)) == (True, False)


@pytest.mark.parametrize(("value", "expected"), [(-math.inf, True), (math.nan, False)])
def test_a_constant_may_be_infinite(value: float, expected: bool) -> None:
    """an attention's mask is minus infinity where nothing is to be seen"""
    masked = nn.Linear(2, 2)
    masked.register_buffer("mask", torch.tensor([0.0, value]))

    assert all_finite(masked) == expected
