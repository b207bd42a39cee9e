"""Of the plans that a search found, the best one that holds when it is measured again."""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import ProbeSettings
from pipeline.core.run import Trial
from pipeline.core.statistics import Estimate
from pipeline.stages.reevaluate import TOP_K, FeasiblePlan, Reevaluated, best_reevaluated, duration_text, expected_final_use


def feasible(reward: float, *used: float) -> FeasiblePlan:
    """A plan of one group, as wide as its reward."""
    plan = ChannelPlan.of({"conv": int(reward)})
    return FeasiblePlan(Candidate(plan, 100, 1000, 500, "s", None, reward), reward, used)


def reevaluated(ranked: list[FeasiblePlan], rises: Mapping[float, float | None]) -> tuple[list[float], float | None]:
    """The rewards in the order they were asked for, and that of the plan that was taken; a rise of None is a failure."""
    asked: list[float] = []

    def measure_again(each: FeasiblePlan) -> Reevaluated:
        asked.append(each.reward)
        rise = rises[each.reward]
        now = () if rise is None else tuple(rise * used for used in each.used)
        return Reevaluated(each.candidate, bool(now) and max(now) <= 1, now)

    best = best_reevaluated(ranked, measure_again)
    return asked, best.candidate.score if best else None


def test_the_best_is_taken_at_once_when_it_holds() -> None:
    assert reevaluated([feasible(80, 0.9), feasible(70, 0.8)], {80: 1.05, 70: 1.0}) == ([80], 80)


def test_after_one_that_does_not_hold_the_next_has_room_for_the_same_rise() -> None:
    ranked = [feasible(80, 0.99), feasible(79, 0.98), feasible(78, 0.97), feasible(70, 0.8)]

    assert reevaluated(ranked, {80: 1.2, 79: 1.2, 78: 1.2, 70: 1.2}) == ([80, 70], 70)


def test_from_one_that_holds_the_way_goes_back_up_with_its_own_rise() -> None:
    """The first was unlucky, 1.2 times what the search saw of it; the others take 1.05 times as much, and 0.95 is too much."""
    ranked = [feasible(80, 0.99), feasible(79, 0.98), feasible(78, 0.94), feasible(77, 0.9), feasible(70, 0.8)]

    assert reevaluated(ranked, {80: 1.2, 79: 1.05, 78: 1.05, 77: 1.05, 70: 1.05}) == ([80, 70, 78], 78)


def test_one_that_fails_on_the_way_up_leaves_the_last_that_held() -> None:
    ranked = [feasible(80, 0.99), feasible(78, 0.94), feasible(77, 0.9), feasible(70, 0.8)]

    assert reevaluated(ranked, {80: 1.2, 78: 1.1, 77: 1.12, 70: 1.02}) == ([80, 70, 78, 77], 70)


def test_a_way_up_goes_on_from_the_better_one_that_held() -> None:
    ranked = [feasible(80, 0.99), feasible(78, 0.95), feasible(77, 0.9), feasible(70, 0.8)]

    assert reevaluated(ranked, {80: 1.2, 78: 1.04, 77: 1.05, 70: 1.1}) == ([80, 70, 77, 78], 78)


def test_where_none_has_the_room_the_one_with_most_is_tried() -> None:
    assert reevaluated([feasible(80, 0.9), feasible(79, 0.95), feasible(78, 0.85)], {80: 1.5, 79: 1.0, 78: 1.1}) == ([80, 78], 78)


def test_every_limit_has_a_rise_of_its_own() -> None:
    """The first limit takes 1.2 times what the search saw, the second what it saw."""
    ranked = [feasible(80, 0.9, 0.5), feasible(79, 0.89, 0.4), feasible(78, 0.7, 0.99), feasible(77, 0.7, 0.5)]
    asked = []

    def measure_again(each: FeasiblePlan) -> Reevaluated:
        asked.append(each.reward)
        now = (1.2 * each.used[0], each.used[1])
        return Reevaluated(each.candidate, max(now) <= 1, now)

    best_reevaluated(ranked, measure_again)
    assert asked == [80, 78]


def test_a_measurement_that_fails_says_nothing_of_the_others() -> None:
    assert reevaluated([feasible(80, 0.99), feasible(79, 0.98)], {80: None, 79: 1.0}) == ([80, 79], 79)


def test_none_is_taken_when_none_holds() -> None:
    assert reevaluated([feasible(80, 0.9), feasible(79, 0.8)], {80: 1.3, 79: 1.3}) == ([80, 79], None)
    assert reevaluated([], {}) == ([], None)


def test_without_limits_the_best_is_taken() -> None:
    asked = []

    def measure_again(each: FeasiblePlan) -> Reevaluated:
        asked.append(each.reward)
        return Reevaluated(each.candidate, within=True, used=())

    best = best_reevaluated([feasible(80), feasible(79)], measure_again)
    assert best
    assert best.candidate.score == 80
    assert asked == [80]


@given(st.data())
def test_what_is_taken_holds_and_no_better_one_was_seen_to_hold(data: st.DataObject) -> None:
    shares = data.draw(st.lists(st.floats(0.3, 1.0), min_size=1, max_size=20))
    rises = [data.draw(st.floats(0.9, 1.4)) for _ in shares]
    ranked = [feasible(100 - at, share) for at, share in enumerate(shares)]
    truth = {each.reward: rise for each, rise in zip(ranked, rises, strict=True)}

    asked, taken = reevaluated(ranked, truth)

    holding = [reward for reward in asked if ranked[int(100 - reward)].used[0] * truth[reward] <= 1]
    assert taken == max(holding, default=None)
    assert len(asked) == len(set(asked)) <= TOP_K


@pytest.mark.parametrize("drift", [1.0, 1.03, 1.08])
def test_a_drift_that_all_share_costs_at_most_the_next_step_in_size(drift: float) -> None:
    """A hundred plans, better the more they use; the machine is `drift` slower, and the first was disturbed on top of that."""
    ranked = [feasible(100 - at, 1 - at / 200) for at in range(100)]
    rises = {each.reward: drift * (1.15 if at == 0 else 1.0) for at, each in enumerate(ranked)}

    asked, taken = reevaluated(ranked, dict(rises))

    assert taken is not None
    fits = [each.reward for each in ranked if each.used[0] * rises[each.reward] <= 1]
    assert taken == max(fits)
    assert len(asked) <= 4


# room for the final measurement


def chosen(shares: Mapping[float, float], half_width: float) -> tuple[list[float], float | None]:
    """The rewards in the order they were asked for, and that of the plan that was taken. Every figure is what the search saw, and
    its interval reaches up by `half_width`.
    """
    asked: list[float] = []
    measured: list[list[Estimate]] = []

    def measure_again(each: FeasiblePlan) -> Reevaluated:
        asked.append(each.reward)
        (share,) = each.used
        measured.append([Estimate(share - 1, share - 1 - half_width, share - 1 + half_width)])
        return Reevaluated(each.candidate, share + half_width <= 1, expected_final_use(measured))

    best = best_reevaluated([feasible(reward, share) for reward, share in shares.items()], measure_again)
    return asked, best.candidate.score if best else None


def test_a_plan_without_room_for_the_final_interval_gives_way_to_one_with_room() -> None:
    """Both are within the limit. The first is so near that its repeat may not be."""
    assert chosen({80: 0.94, 79: 0.90}, half_width=0.05) == ([80, 79], 79)


def test_where_none_has_room_the_plan_that_is_farthest_from_the_limit_is_taken() -> None:
    assert chosen({80: 0.945, 79: 0.94}, half_width=0.05) == ([80, 79], 79)
    assert chosen({80: 0.94, 79: 0.945}, half_width=0.05) == ([80, 79], 80)


def test_exact_figures_need_no_room() -> None:
    assert chosen({80: 1.0, 79: 0.9}, half_width=0.0) == ([80], 80)


def test_room_is_for_the_widest_interval_that_a_finalist_had() -> None:
    busy, quiet = Estimate(-0.2, -0.25, -0.1), Estimate(-0.1, -0.11, -0.09)

    assert expected_final_use([[quiet]]) == pytest.approx([0.9 + np.sqrt(2) * 0.01])
    assert expected_final_use([[busy], [quiet]]) == pytest.approx([0.9 * (1 + np.sqrt(2) * 0.1 / 0.8)])


def test_a_repeat_stays_below_the_share_that_was_expected_as_often_as_its_level_says() -> None:
    """Two measurements of the same plan with the same noise, 20,000 times: 97.5 % of the repeats lie below."""
    noise = 0.02
    first, repeat = np.random.default_rng(0).normal(0.9, noise, (2, 20_000))
    expected = np.array([expected_final_use([[Estimate(x - 1, x - 1, x - 1 + 1.96 * noise)]])[0] for x in first])

    assert np.mean(repeat <= expected) == pytest.approx(0.975, abs=0.004)


def thinnest(seconds: float) -> Trial:
    return Trial("uniform", 1, Candidate(ChannelPlan.of({"conv": 1}), 100, 1000, 500, "s", None, None), seconds)


@pytest.mark.parametrize(
    ("plans", "seconds", "text"),
    [
        (
            3,
            2.0,
            "the best plan is measured again, and up to 2 others if it is not within the budget then; 2 to 5 measurements of 5 "
            "processes per plan, which takes about 10 s, and 1:15 at most",
        ),
        (1, 0.0, "the best plan is measured again; 2 to 5 measurements of 5 processes per plan"),
        (
            0,
            2.0,
            "no plan of the search is within the budget, so the thinnest plan is measured again; 2 to 5 measurements of 5 processes "
            "per plan, which takes about 10 s, and 25 s at most",
        ),
    ],
)
def test_what_is_measured_again_is_said_before_with_its_time(plans: int, seconds: float, text: str) -> None:
    """the thinnest plan took so long with two processes"""
    settings = ProbeSettings(processes=2, final_processes=5)

    assert duration_text(plans, settings, thinnest(seconds)) == text
