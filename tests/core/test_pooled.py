"""Ratios of several boards: a mean with the board as a random effect, and the verdict on every board."""

import math
from dataclasses import replace

import pytest
from helpers.candidates import candidate

from pipeline.core.budget import judge, read_limit
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Measurement, TimedProcess, pool_of
from pipeline.core.pooled import highest, pooled
from pipeline.core.remark import Remark, RemarkKind
from pipeline.core.statistics import NORMAL, Estimate, student

BCG = (
    (-0.8893, 0.3256), (-1.5854, 0.1946), (-1.3481, 0.4154), (-1.4416, 0.0200), (-0.2175, 0.0512), (-0.7861, 0.0069),
    (-1.6209, 0.2230), (0.0120, 0.0040), (-0.4694, 0.0564), (-1.3713, 0.0730), (-0.3394, 0.0124), (0.4459, 0.5325),
    (-0.0173, 0.0714),
)  # fmt: skip
"""(log risk ratio, variance) of 13 trials of a vaccine: Colditz et al., JAMA 1994."""


def of_log(y: float, error: float) -> Estimate:
    return Estimate(math.exp(y), math.exp(y - NORMAL * error), math.exp(y + NORMAL * error))


def test_the_spread_is_that_of_dersimonian_and_laird_on_published_trials() -> None:
    """tau^2 = 0.3088 and mu = -0.7141, by the R package metafor with method DL; the data have four digits"""
    found = pooled([of_log(y, math.sqrt(variance)) for y, variance in BCG])

    assert found.spread**2 == pytest.approx(0.3088, abs=1e-3)
    assert math.log(found.ratio.value) == pytest.approx(-0.7141, abs=1e-3)


def test_boards_of_equal_precision_have_a_t_interval_of_their_logarithms() -> None:
    """0.44, 0.48, 0.46 and 0.52, each within 0.1 %: nearly all spread is between boards"""
    y = [math.log(ratio) for ratio in (0.44, 0.48, 0.46, 0.52)]
    mean = sum(y) / 4
    reach = student(3) * math.sqrt(sum((each - mean) ** 2 for each in y) / 3 / 4)
    found = pooled([of_log(each, 0.0005) for each in y]).ratio

    assert (found.value, found.low, found.high) == pytest.approx(
        (math.exp(mean), math.exp(mean - reach), math.exp(mean + reach)), rel=1e-5
    )


def test_boards_that_agree_by_chance_keep_the_error_of_their_measurements() -> None:
    found = pooled([of_log(math.log(0.5), 0.03)] * 4)

    assert found.spread == 0
    assert math.log(found.ratio.high / found.ratio.value) == pytest.approx(student(3) * 0.03 / 2)


def test_the_interval_of_two_boards_contains_both_of_theirs() -> None:
    found = pooled([Estimate(0.40, 0.39, 0.41), Estimate(0.45, 0.43, 0.46)]).ratio

    assert (found.low, found.high) == (0.39, 0.46)
    assert 0.40 < found.value < 0.45


def test_one_board_has_its_own_interval() -> None:
    assert pooled([Estimate(0.4, 0.3, 0.5)]).ratio == Estimate(0.4, 0.3, 0.5)


def test_the_highest_figure_is_within_a_limit_only_if_every_one_is() -> None:
    assert highest([Estimate(1.0, 0.5, 1.6), Estimate(1.2, 1.1, 1.3)]) == Estimate(1.2, 1.1, 1.6)


def on_board(name: str, ratio: float, dense_ms: float = 2.0, **changes: object) -> Measurement:
    """A board whose dense network takes `dense_ms`, and the candidate `ratio` of that, with a little noise."""
    process = TimedProcess(
        tuple(tuple(ratio * dense_ms * (1 + 0.001 * ((run + block) % 5)) for run in range(8)) for block in range(8)),
        ((dense_ms,) * 8,) * 8,
        1.0,
        1.0,
        1.0,
        0,
        1.0,
    )
    measured = candidate().measurement
    assert measured
    return replace(measured, processes=(process,) * 3, board=name, **changes)  # type: ignore[arg-type]


def verdict(measured: Measurement, limit: str) -> str:
    found: Candidate = replace(candidate(), measurement=measured)
    return judge((read_limit("latency_p50", limit),), found, candidate())


def test_each_board_is_compared_with_its_own_dense_network() -> None:
    """Boards whose speeds differ by 10 %, and all ratios are 0.40"""
    boards = [on_board("a", 0.4, 2.0), on_board("b", 0.4, 2.2), on_board("c", 0.4, 2.1)]
    found = pool_of(boards, every_board=False)

    assert found.relative_p50
    assert found.relative_p50.value == pytest.approx(0.4, rel=0.01)
    assert found.latency_p50_ms.value == pytest.approx(0.88, rel=0.01)  # a time is that of the slowest board


@pytest.mark.parametrize(("every_board", "expected"), [(False, "within"), (True, "over")])
def test_a_verdict_is_on_the_mean_or_on_every_board(every_board: bool, expected: str) -> None:
    """limit 50 %; five boards at 40 %, and one at 53 %"""
    boards = [on_board(str(number), 0.4 + 0.001 * number) for number in range(5)] + [on_board("slow", 0.53)]

    assert verdict(pool_of(boards, every_board=every_board), "50 %") == expected


def test_a_disturbed_board_is_left_out_while_two_others_are_not_disturbed() -> None:
    disturbed = on_board("busy", 0.9, remarks=(Remark(RemarkKind.THROTTLED, "throttled"),))
    boards = [on_board("a", 0.4), on_board("b", 0.4), disturbed]

    assert verdict(pool_of(boards, every_board=False), "50 %") == "within"
    assert verdict(pool_of(boards[1:], every_board=False), "50 %") == "undecided"


def test_a_repeated_measurement_is_joined_board_by_board() -> None:
    first = pool_of([on_board("a", 0.4), on_board("b", 0.5)], every_board=True)
    again = pool_of([on_board("b", 0.5), on_board("c", 0.6)], every_board=True)
    joined = first.joined(again)

    assert {each.board: len(each.processes) for each in joined.boards} == {"a": 3, "b": 6, "c": 3}
    assert joined.every_board
