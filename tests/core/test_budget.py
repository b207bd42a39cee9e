"""Budgets: what can be written, what is refused and why, and what a verdict rests on."""

import re
from pathlib import Path

import pytest
from helpers.candidates import candidate
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.budget import Constraint, Limit, Metric, Unit, judge, known_metrics, read_budget, show, worst_verdict
from pipeline.core.measurement import Failure, Memory
from pipeline.core.profile import BudgetText, Profile, load_profile
from pipeline.core.statistics import Estimate
from pipeline.errors import BudgetError

HERE, ELSEWHERE = load_profile("local"), load_profile("raspberrypi")
DENSE = candidate(latency_ms=2.0, params=400, macs=8000, file_size_bytes=1000, memory=Memory(100, 300, 500), score=98.0)


def read(profile: Profile = HERE, **texts: BudgetText) -> tuple[Constraint, ...]:
    """The budget of `texts` alone, without what the profile brings."""
    return read_budget(profile.model_copy(update={"budget": {}}), texts)


@pytest.mark.parametrize(
    ("key", "text", "limit", "relative", "written"),
    [
        # absolute, in each unit
        ("latency_p50", "4 ms", 4.0, False, "latency p50 <= 4.000 ms"),
        ("latency_p90", "0.04 s", 40.0, False, "latency p90 <= 40.00 ms"),
        ("peak_memory", "150 MiB", 150 * 2**20, False, "peak memory <= 150.0 MiB"),
        ("model_memory", "2 GB", 2e9, False, "model memory <= 1.9 GiB"),
        ("file_size", "300 kB", 3e5, False, "file size <= 293.0 KiB"),
        ("params", "1.5M", 1.5e6, False, "parameters <= 1.50M"),
        ("macs", 1000, 1000.0, False, "MACs <= 1.00k"),
        # relative
        ("latency_p50", "50 %", 0.5, True, "latency p50 <= 50.0 % of dense"),
        ("latency_p90", "33.3%", 0.333, True, "latency p90 <= 33.3 % of dense"),
        ("peak_memory", "120 %", 1.2, True, "peak memory <= 120.0 % of dense"),
        ("params", " 5e-1 % ", 0.005, True, "parameters <= 0.5 % of dense"),
    ],
)
def test_a_limit_is_read_in_its_unit_or_as_a_share(key: str, text: str, limit: float, relative: bool, written: str) -> None:
    (constraint,) = read(**{key: text})

    assert constraint.metric is known_metrics()[key]
    assert constraint.limit == pytest.approx(limit)
    assert constraint.relative == relative
    assert constraint.text == written


@pytest.mark.parametrize("text", [0, "0", 1.5, "2 points"])
def test_no_accuracy_at_all_may_be_lost_if_one_wishes(text: BudgetText) -> None:
    """zero is a limit here, and only here"""
    *_, drop = read(params="50 %", accuracy_drop=text)

    assert drop.limit == float(str(text).split()[0])
    assert drop.metric.after_finetuning


def test_the_command_line_is_laid_over_the_profile() -> None:
    constraints = read_budget(ELSEWHERE, {"latency_p50": "30 %", "params": "1k"})

    assert {c.metric.key: c.limit for c in constraints} == {"latency_p50": 0.3, "accuracy_drop": 2.0, "params": 1000.0}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"latncy": "50 %"},
            "budget: unknown key 'latncy'; choose from accuracy_drop, file_size, latency_p50, latency_p90, macs, model_memory, "
            "params, peak_memory",
        ),
        (
            {"latency_p50": "4 MiB"},
            "budget: latency_p50: expected a number in us or µs or ms or s (got '4 MiB'); write for example 40 ms or 50 %",
        ),
        (
            {"latency_p50": 4},
            "budget: latency_p50: expected a number in us or µs or ms or s (got 4); write for example 40 ms or 50 %",
        ),
        ({"params": "many %"}, "budget: params: expected a percentage (got 'many %'); write for example params=50%"),
        ({"params": "-5 %"}, "budget: params: expected a percentage (got '-5 %'); write for example params=50%"),
        ({"params": "0 %"}, "budget: params: must be above 0 % (got '0 %')"),
        ({"params": 0}, "budget: params: must be above zero (got 0); write for example params=50%"),
        ({"latency_p50": "0 ms"}, "budget: latency_p50: must be above zero (got '0 ms'); write for example latency_p50=50%"),
        (
            {"accuracy_drop": "2 %"},
            "budget: accuracy_drop: expected points, not % (got '2 %'); write for example accuracy_drop=1.0",
        ),
        (
            {"accuracy_drop": "-1"},
            "budget: accuracy_drop: expected a number in points or point (got '-1'); write for example 1.0",
        ),
        (
            {"accuracy_drop": 1},
            "the budget for this machine does not limit the network's size or speed (only accuracy_drop); add a limit, for example --budget latency_p50=50%",
        ),
        (
            {},
            "the budget for this machine does not limit the network's size or speed; add a limit, for example --budget latency_p50=50%",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(texts: dict[str, BudgetText], message: str) -> None:
    with pytest.raises(BudgetError) as refused:
        read(**texts)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("key", "text", "written"),
    [
        ("latency_p50", "4 ms", "latency p50 <= 4.000 ms"),
        ("latency_p90", "4 ms", "latency p90 <= 4.000 ms"),
        ("peak_memory", "80 MiB", "peak memory <= 80.0 MiB"),
        ("model_memory", "80 MiB", "model memory <= 80.0 MiB"),
    ],
)
def test_figures_of_another_machine_are_no_budget_and_three_ways_out_are_named(key: str, text: str, written: str) -> None:
    """P14: only the device itself can meet a budget in milliseconds or bytes"""
    with pytest.raises(BudgetError) as refused:
        read(ELSEWHERE, **{key: text})

    assert str(refused.value) == (
        f"budget: {written} needs a measurement on Raspberry Pi 4 Model B (4 GB), but this run measures on this machine; set device.host in the profile, or use a relative limit ({key}=50%), or use --target local if this machine is the target"
    )


def test_what_is_counted_is_the_same_on_every_machine() -> None:
    assert len(read(ELSEWHERE, params="1M", macs="1M", file_size="1 MiB", accuracy_drop=1)) == 4


@pytest.mark.parametrize(
    ("key", "absolute", "relative"),
    [
        ("params", 100, 0.25),
        ("macs", 1000, 0.125),
        ("file_size", 500, 0.5),
        ("latency_p50", 1.0, 0.5),
        ("latency_p90", 1.0, 0.5),
        ("peak_memory", 300, 0.6),
        ("model_memory", 200, 0.5),
        ("accuracy_drop", 2.0, None),
    ],
)
def test_each_metric_tells_its_figure_and_its_share_of_the_dense_network(
    key: str, absolute: float, relative: float | None
) -> None:
    metric = known_metrics()[key]
    share = metric.relative(candidate(), DENSE) if metric.relative else None

    assert metric.absolute(candidate(), DENSE) == Estimate.exact(absolute)
    assert (share.value if share else None) == relative
    assert share is None or key.startswith("latency") or share == Estimate.exact(relative or 0.0)


@pytest.mark.parametrize("key", ["latency_p50", "latency_p90", "peak_memory", "model_memory", "accuracy_drop"])
def test_what_is_not_known_is_undecided(key: str) -> None:
    unknown = candidate(measured=False, score=None)
    constraint = Constraint(known_metrics()[key], 1e9, relative=False)

    assert constraint.figure(unknown, DENSE) is None
    assert constraint.violation(unknown, DENSE) is None
    assert constraint.verdict(unknown, DENSE) == "undecided"
    assert constraint.show(None) == "not known"


def test_memory_that_the_system_does_not_count_is_not_known() -> None:
    uncounted = candidate(memory=Memory(None, None, None))

    assert known_metrics()["peak_memory"].absolute(uncounted, DENSE) is None
    assert known_metrics()["model_memory"].absolute(uncounted, DENSE) is None


def between(low: float, value: float, high: float) -> Metric:
    """A metric that says of every candidate what it is told to say."""
    found = Estimate(value, low, high)
    return Metric("figure", "figure", "count", lambda candidate, dense: found, lambda candidate, dense: found)


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [
        (80, 90, 99, "within"),
        (80, 90, 100, "within"),  # at the limit is within it
        (80, 90, 100.0000001, "undecided"),  # and never rounded to it
        (99, 99, 101, "undecided"),
        (100, 105, 110, "undecided"),
        (100.0000001, 105, 110, "over"),
        (200, 200, 200, "over"),
        (float("nan"), float("nan"), float("nan"), "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, value: float, high: float, verdict: str) -> None:
    """a limit of 100"""
    assert Constraint(between(low, value, high), 100, relative=False).verdict(candidate(), DENSE) == verdict


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_an_overrun_is_below_zero_exactly_when_the_figure_is_below_its_limit(figure: float, limit: float) -> None:
    violation = Constraint(between(figure, figure, figure), limit, relative=True).violation(candidate(), DENSE)

    assert violation is not None
    assert (violation.value <= 0) == (figure <= limit)
    assert violation.value == pytest.approx(figure / limit - 1, rel=1e-9, abs=1e-9)


def test_a_limit_of_zero_has_an_overrun_too() -> None:
    """half a point lost where none may be: fifty times the last digit that is shown"""
    drop = Constraint(known_metrics()["accuracy_drop"], 0.0, relative=False)

    assert drop.violation(candidate(score=97.5), DENSE) == Estimate.exact(pytest.approx(50))
    assert drop.verdict(candidate(score=98.0), DENSE) == "within"
    assert drop.verdict(candidate(score=99.0), DENSE) == "within"


def test_the_worst_of_all_verdicts_counts() -> None:
    within, undecided, over = (Constraint(between(low, 1, high), 1, False) for low, high in ((1, 1), (0, 2), (2, 2)))

    assert judge((within, within), candidate(), DENSE) == "within"
    assert judge((within, undecided), candidate(), DENSE) == "undecided"
    assert judge((undecided, over, within), candidate(), DENSE) == "over"
    assert judge((within,), candidate(failure=Failure("timeout", "")), DENSE) == "over"
    assert worst_verdict(()) == "within"


def test_a_function_of_ones_own_is_a_limit_like_any_other() -> None:
    """at most 4 parameters for each byte of the file, and at most half of what the dense network has"""
    density = Metric.of("density", lambda candidate: candidate.params / candidate.file_size_bytes)
    absolute, relative = read_budget(
        ELSEWHERE.model_copy(update={"budget": {}}), {}, (Limit(density, 4.0), Limit(density, 0.4, True))
    )

    assert absolute.figure(candidate(), DENSE) == Estimate.exact(0.2)
    assert absolute.verdict(candidate(), DENSE) == "within"
    assert relative.figure(candidate(), DENSE) == Estimate.exact(pytest.approx(0.5))
    assert relative.verdict(candidate(), DENSE) == "over"
    assert absolute.text == "density <= 4"


def test_the_page_of_budgets_lists_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "budgets.md").read_text()
    rows = page.partition("| key | limit |")[2].partition("\n\n")[0]

    assert set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows.splitlines()[2:]))) == set(known_metrics())


@pytest.mark.parametrize(
    ("value", "unit", "relative", "expected"),
    [
        (1.2344, "ms", False, "1.234 ms"),
        (12.344, "ms", False, "12.34 ms"),
        (3 * 2**20, "bytes", False, "3.0 MiB"),
        (1.005, "points", False, "1.00 points"),
        (1_234_567, "count", False, "1.23M"),
        (0.4567, "ms", True, "45.7 %"),
    ],
)
def test_figures_are_written_for_people(value: float, unit: Unit, relative: bool, expected: str) -> None:
    assert show(value, unit, relative) == expected
