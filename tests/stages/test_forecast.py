"""Forecasts of the duration of a run. No clock runs here: sizes and costs are given."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.graphs import profile
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.forecast import Forecast
from pipeline.core.journal import read_journal, sealed
from pipeline.core.progress import NullCallback
from pipeline.core.run import open_run
from pipeline.stages.forecast import Costs, Sizes, estimate_after_loading, estimate_before_search, forecast_outcome, say_forecast

SIZES = Sizes(
    trials=60,
    processes=2,
    final_processes=5,
    int8=False,
    epochs=20,
    training_images=1000,
    scored_images=200,
    test_images=400,
    training_limit_s=0.0,
)
COSTS = Costs(elapsed_s=30.0, trials=0, image_s=0.001, dense_s=2.0, thinnest_s=1.0)


def test_sixty_trials_of_one_to_two_seconds_lie_within_the_forecast() -> None:
    """and nothing is trained, tested or confirmed for longer than a minute"""
    found = estimate_before_search(replace(SIZES, epochs=0, test_images=0), COSTS)

    assert found.low_s < 30 + 60 * 1.0
    assert found.high_s > 30 + 60 * 2.0


def test_several_boards_may_shorten_the_search_and_nothing_else() -> None:
    """60 trials, of 0.3 s at least; four boards take 4.5 s of these 18 s"""
    one, four = (estimate_before_search(replace(SIZES, boards=boards), COSTS) for boards in (1, 4))

    assert one.low_s - four.low_s == pytest.approx(0.75 * 60 * 0.3, abs=0.2)
    assert four.high_s == one.high_s


def test_twenty_epochs_of_a_large_data_set_dominate_the_forecast() -> None:
    """50,000 images of 10 ms: an epoch of one backward and two forward passes takes 2,000 s at least"""
    found = estimate_before_search(replace(SIZES, training_images=50_000), replace(COSTS, image_s=0.01))

    assert found.low_s < 20 * 2000 < found.high_s


def test_the_sensitivity_of_many_groups_is_part_of_the_forecast() -> None:
    """60 groups with two widths each, 64 pictures, twice: 15,360 images of 10 ms"""
    costs = replace(COSTS, image_s=0.01)
    without, whole = (estimate_before_search(SIZES, replace(costs, sensitivity_images=images)) for images in (0, 15_360))

    assert whole.low_s - without.low_s < 153.6 < whole.high_s - without.high_s


def test_trials_that_an_interrupted_run_finished_are_not_expected_again() -> None:
    whole, rest = (estimate_before_search(SIZES, replace(COSTS, trials=trials)) for trials in (0, 50))

    assert rest.high_s < whole.high_s


def test_training_from_few_pictures_takes_no_longer_than_its_limit() -> None:
    unlimited, limited = (
        estimate_before_search(replace(SIZES, epochs=0, training_limit_s=limit_s), COSTS).high_s for limit_s in (0.0, 600.0)
    )

    assert limited - unlimited == pytest.approx(660)


@given(st.integers(1, 500), st.integers(0, 100), st.integers(1, 100_000), st.floats(0, 1), st.floats(0, 100), st.floats(0, 100))
def test_a_forecast_is_a_range_that_begins_after_the_time_that_has_passed(
    trials: int, epochs: int, images: int, image_s: float, dense_s: float, thinnest_s: float
) -> None:
    sizes = replace(SIZES, trials=trials, epochs=epochs, training_images=images)
    for found in (
        estimate_after_loading(sizes, profile(), image_s),
        estimate_before_search(sizes, Costs(30.0, 0, image_s, dense_s, thinnest_s)),
    ):
        assert 0 < found.low_s <= found.high_s
    assert found.low_s >= 30


def test_measuring_makes_the_range_narrower() -> None:
    """of a network of 1 ms, whose trials take 1 to 2 s"""
    before, after = estimate_after_loading(SIZES, profile(), 0.001), estimate_before_search(SIZES, COSTS)

    assert after.high_s / after.low_s < before.high_s / before.low_s


class Told(NullCallback):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def test_a_resumed_run_keeps_the_first_forecast_and_shows_it_again(tmp_path: Path) -> None:
    told = Told()
    for forecast in (Forecast("loaded", 60, 600), Forecast("loaded", 1, 2)):
        with open_run(tmp_path / "run", {}) as run:
            say_forecast(run, told, forecast, own_training=False)
            kept = run.forecasts

    assert kept == (Forecast("loaded", 60, 600),)
    assert told.texts == 2 * [
        "the whole run will probably take 1:00 to 10:00 (a wide range, because nothing is measured yet; 0 s so far)"
    ]


def test_a_run_says_how_right_its_forecasts_were(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", {}) as run:
        with run.phase("load"):
            pass
        assert forecast_outcome(run) == "the run took 0 s"
        for forecast in (Forecast("measured", 70, 90), Forecast("loaded", 60, 600)):
            run.record_forecast(forecast)

        assert forecast_outcome(run) == (
            "the run took 0 s; the forecast was 1:00 to 10:00 after loading and 1:10 to 1:30 after the first measurements"
        )


@pytest.mark.parametrize(("low_s", "high_s"), [(2, 1), (-1, 1), (0, 1e999), ("x", 1)])
def test_a_forecast_that_cannot_be_one_is_a_damaged_line(low_s: float, high_s: float) -> None:
    line = sealed({"kind": "forecast", "forecast": {"made": "loaded", "low_s": low_s, "high_s": high_s}})
    found = read_journal(line)

    assert found.forecasts == ()
    assert len(found.damage) == 1
