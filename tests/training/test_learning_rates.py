"""Learning rates: the highest that ends about as well as any, whatever the number of images."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.learning_rates import RATES, fitting_batch_size, trial_steps, tried_rate


def asked(score: Callable[[float], float], start: float) -> tuple[float, list[float]]:
    """The rate that is taken, and those that were tried."""
    tried: list[float] = []

    def trial(rate: float) -> float:
        tried.append(rate)
        return score(rate)

    return tried_rate(trial, start), tried


def test_rates_reach_from_a_twentieth_to_a_ten_thousandth_highest_first() -> None:
    assert (RATES[0], RATES[-1]) == (0.05, 1e-4)
    assert list(RATES) == sorted(RATES, reverse=True)


def test_of_rates_that_end_alike_the_highest_is_taken() -> None:
    assert asked(lambda rate: 90.0 + 0.5 * (rate < 0.01), start=90.0)[0] == 0.05


def test_a_network_that_every_high_rate_ruins_gets_a_low_one() -> None:
    """At 0.0005 and below it ends above its start; above that it ends near chance."""
    rate, tried = asked(lambda rate: 86.0 if rate <= 0.0005 else 10.0 + 200 * rate, start=85.0)

    assert rate == 0.0005
    assert tried == list(RATES)


def test_once_two_rates_are_clearly_worse_lower_ones_are_not_tried() -> None:
    """The best is 0.02; what is lower learns too slowly."""
    rate, tried = asked(lambda rate: 80.0 if rate > 0.01 else 70.0, start=60.0)

    assert rate == 0.05
    assert tried == [0.05, 0.02, 0.01, 0.005]


def test_rates_that_diverge_are_not_taken() -> None:
    assert asked(lambda rate: -math.inf if rate > 0.003 else 50.0, start=40.0)[0] == 0.002


@given(st.lists(st.floats(0, 100), min_size=len(RATES), max_size=len(RATES)), st.floats(0, 100))
def test_the_rate_taken_is_the_highest_within_a_point_of_the_best_tried(scores: list[float], start: float) -> None:
    known = dict(zip(RATES, scores, strict=True))
    rate, tried = asked(known.__getitem__, start)
    best = max(known[each] for each in tried)

    assert rate == max(each for each in tried if known[each] >= best - 1.0)
    assert len(tried) == len(RATES) or best >= start


@given(st.integers(1, 100_000))
def test_a_batch_is_the_largest_power_of_two_with_sixteen_steps_in_an_epoch(images: int) -> None:
    fitting = [size for size in (128, 64, 32, 16) if images // size >= 16]

    assert fitting_batch_size(images) == (fitting[0] if fitting else 16)


@pytest.mark.parametrize(
    ("steps", "batch_size", "expected"),
    [(7820, 128, 78), (180, 64, 18), (34, 32, 16), (1, 2, 16)],
    ids=["20 epochs of 50,000 images", "20 epochs of 570", "2 epochs of 540", "1 epoch of 2"],
)
def test_a_trial_has_a_tenth_of_the_steps_and_never_less_than_sixteen(steps: int, batch_size: int, expected: int) -> None:
    assert trial_steps(steps, batch_size) == expected
