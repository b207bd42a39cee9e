"""The choice among plans whose measurements were disturbed, and what is said about it."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from helpers.candidates import candidate

from pipeline.core.budget import Constraint, known_metrics
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import TimedProcess
from pipeline.core.plan import ChannelPlan
from pipeline.core.remark import Remark, RemarkKind
from pipeline.core.statistics import Estimate
from pipeline.stages.choice_notices import choice_notices
from pipeline.stages.reevaluate import FeasiblePlan, Reevaluated, best_reevaluated, judged_again, rank

HALF = (Constraint(known_metrics()["latency_p50"], 0.5, relative=True),)
DENSE = candidate(latency_ms=2.0)
PREEMPTED = Remark(RemarkKind.PREEMPTED, "10 of 128 timed runs were not preempted")


def plan(width: int, share: float, *, spread: float = 0.0, doubts: Iterable[Remark] = ()) -> Candidate:
    """One group with `width` channels, and `share` of the dense latency. Processes differ by `spread` on either side."""
    made = candidate(latency_ms=2.0 * share, score=float(width))
    assert made.measurement
    latencies = (2.0 * share * (1 + side * spread) for side in (-1, 1, -1, 1))
    processes = tuple(
        TimedProcess(((latency_ms,) * 8,) * 8, ((2.0,) * 8,) * 8, 1.0, 1.0, 1.0, 0, 1.0) for latency_ms in latencies
    )
    measured = replace(made.measurement, processes=processes, remarks=tuple(doubts))
    return replace(made, plan=ChannelPlan.of({"conv": width}), measurement=measured)


def ranked(*searched: Candidate, thinnest: Candidate) -> list[float]:
    rewarded = [(each, each.score or 0.0) for each in (*searched, thinnest)]
    return [each.reward for each in rank(HALF, rewarded, DENSE, thinnest.plan)]


def test_a_plan_whose_interval_contains_the_limit_comes_after_those_within_and_before_the_thinnest() -> None:
    thinnest = plan(1, 0.03)
    noisy, over, within = plan(9, 0.45, spread=0.3), plan(12, 0.55, spread=0.3), plan(8, 0.3)

    assert ranked(noisy, over, within, thinnest=thinnest) == [8, 9]
    assert ranked(noisy, over, thinnest=thinnest) == [9]
    assert ranked(over, thinnest=thinnest) == []


def test_the_thinnest_plan_stays_if_a_plan_within_the_budget_is_worse() -> None:
    assert ranked(plan(1, 0.3), thinnest=plan(2, 0.03)) == [2, 1]


def chosen(*searched: Candidate, again: dict[int, Candidate], thinnest: Candidate) -> float | None:
    """The score of the plan that is chosen. `again`: by width, the candidate as it is measured again."""
    rewarded = [(each, each.score or 0.0) for each in (*searched, thinnest)]

    measured: list[list[Estimate]] = []

    def measure_again(each: FeasiblePlan) -> Reevaluated:
        return judged_again(HALF, again[int(each.reward)], DENSE, measured)

    best = best_reevaluated(rank(HALF, rewarded, DENSE, thinnest.plan), measure_again)
    return best.candidate.score if best else None


def test_doubts_about_the_machine_do_not_make_the_choice_thinner() -> None:
    """Every measurement is disturbed, so no verdict is within. The plan with 40 % is taken, and not the thinnest."""
    doubtful = [plan(9, 0.4, doubts=[PREEMPTED]), plan(7, 0.2, doubts=[PREEMPTED])]

    assert chosen(*doubtful, again={9: doubtful[0], 7: doubtful[1]}, thinnest=plan(1, 0.03)) == 9


def test_if_every_interval_contains_the_limit_the_plan_with_the_lowest_figure_of_those_is_taken() -> None:
    noisy = [plan(9, 0.45, spread=0.4), plan(8, 0.42, spread=0.4)]

    assert chosen(*noisy, again={9: noisy[0], 8: noisy[1]}, thinnest=plan(1, 0.03)) == 8


def test_if_no_figure_is_within_the_limit_no_plan_is_chosen() -> None:
    assert chosen(plan(9, 0.49), again={9: plan(9, 0.55)}, thinnest=plan(1, 0.03)) is None


def test_a_sure_plan_near_its_limit_needs_no_notice() -> None:
    assert choice_notices(HALF, plan(9, 0.45), DENSE, plan(10, 0.49), is_thinnest=False) == ()
    assert choice_notices(HALF, plan(9, 0.2), DENSE, None, is_thinnest=False) == ()


@pytest.mark.parametrize(
    ("taken", "better", "is_thinnest", "beginning", "end"),
    [
        (
            plan(9, 0.4, doubts=[PREEMPTED]),
            None,
            False,
            "the plan was chosen by disturbed measurements (10 of 128 timed runs were not preempted): latency p50 40.0 %",
            "leave cores for them, then run again with another --out",
        ),
        (
            plan(7, 0.2),
            plan(9, 0.41),
            False,
            "the chosen plan uses much less than the budget allows: latency p50 20.0 %",
            "(limit 50.0 %) in the search; leave the machine alone, then run again with another --out",
        ),
        (
            plan(7, 0.45, spread=0.4),
            None,
            False,
            "no plan is surely within the budget; the nearest is taken: latency p50 45.0 % [",
            "(limit 50.0 %)",
        ),
        (
            plan(1, 0.03),
            None,
            True,
            "no other plan had figures within the budget, so the thinnest plan is taken: latency p50 3.0 %",
            "(limit 50.0 %)",
        ),
    ],
    ids=["disturbed", "thin", "undecided", "thinnest"],
)
def test_a_choice_that_a_quiet_machine_would_not_have_made_is_said(
    taken: Candidate, better: Candidate | None, is_thinnest: bool, beginning: str, end: str
) -> None:
    (notice,) = choice_notices(HALF, taken, DENSE, better, is_thinnest=is_thinnest)

    assert notice.startswith(beginning)
    assert notice.endswith(end)
