"""Several runs on one page: which can be compared, which no other beats, and what differs."""

import itertools
from pathlib import Path

import pytest
from helpers.recorded import POINTS, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.statistics import Estimate
from pipeline.packaging.report.comparison import Compared, compare, differences, pareto_front, remarks_of, why_not_comparable
from pipeline.packaging.report.comparison_page import PRINTED_DIFFERENCES, comparison_page
from pipeline.packaging.report.recorded_run import RecordedRun, read_recorded_run


class Known(Compared):
    """A finished run of which only latency and score are known."""

    finished, score, latency_ms = True, 0.0, None  # type: ignore[assignment]

    def __init__(self, latency_ms: float, score: float) -> None:
        object.__setattr__(self, "latency_ms", Estimate.exact(latency_ms))
        object.__setattr__(self, "score", score)


def ms(run: Compared) -> Estimate | None:
    return run.latency_ms


@settings(max_examples=60)
@given(figures=st.lists(st.tuples(st.integers(1, 5), st.integers(90, 94)), max_size=7))
def test_the_front_has_the_runs_that_no_other_beats(figures: list[tuple[int, int]]) -> None:
    """the definition, by brute force"""
    runs = [Known(latency, score) for latency, score in figures]
    beaten = {
        mine
        for mine, its in itertools.permutations(range(len(figures)), 2)
        if figures[its][0] <= figures[mine][0] and figures[its][1] >= figures[mine][1] and figures[its] != figures[mine]
    }
    expected = sorted(figures[number] for number in range(len(figures)) if number not in beaten)

    assert [(run.latency_ms.value, run.score) for run in pareto_front(runs, ms)] == expected  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"job": {"seed": 1, "searcher": "tpe"}}, ""),
        ({"dense": "another"}, "the networks differ"),
        ({"facts": {"weights": "others"}}, "the dense networks have different weights"),
        ({"facts": {"data": "photos"}}, "the data differ"),
        ({"facts": {"machine": "another"}}, "they were not measured in the same way (machine: cpu and another)"),
        ({"shipped": None}, "one of them is unfinished, so its score is not that of a fine-tuned network on test data"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_runs_that_cannot_be_compared_are_shown_with_the_reason(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    first = write_run(tmp_path / "first", shipped=(0.8, 96.0))
    second = write_run(tmp_path / "second", **{"shipped": (0.9, 97.0), **changes})  # type: ignore[arg-type]
    runs = compare([read_recorded_run(first), read_recorded_run(second)])
    page = comparison_page([run.run for run in runs]).decode()

    assert why_not_comparable(*runs) == ((reason,) if reason else ())
    assert (f"B cannot be compared with A: {reason}." in page) == bool(reason)
    assert "<h1>2 runs</h1>" in page
    assert page.count('data-plot="runs-latency"') == 1


def test_settings_that_differ_are_listed_and_equal_ones_are_counted(tmp_path: Path) -> None:
    changed = {"seed": 7, "budget": {"latency_p50": "40.0 %"}}
    folders = [write_run(tmp_path / "a", shipped=(0.8, 96.0)), write_run(tmp_path / "b", job=changed, shipped=(0.7, 95.0))]
    found, equal = differences(compare([read_recorded_run(folder) for folder in folders]))

    assert {row.name: row.values for row in found} == {
        "budget accuracy_drop": ("2.00 points", ""),
        "budget latency_p50": ("50.0 %", "40.0 %"),
        "seed": ("0", "7"),
    }
    assert equal > 3


def test_of_many_differences_paper_shows_the_first_and_what_a_user_chooses_comes_first(tmp_path: Path) -> None:
    jobs = [{**{f"z{k}": n for k in range(12)}, "profile": {"device": {"name": n}}} for n in "ab"]
    folders = [write_run(tmp_path / job["z0"], shipped=(0.8, 96.0), job=job) for job in jobs]
    found, _ = differences(compare([read_recorded_run(folder) for folder in folders]))
    page = comparison_page([read_recorded_run(folder) for folder in folders]).decode()

    assert found[-1].name == "profile device name"
    assert page.count('<tr class="noprint">') == len(found) - PRINTED_DIFFERENCES == 3
    assert "3 more differences are on the page on the screen." in page


def test_an_unfinished_run_differs_in_no_version_because_it_has_noted_none(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", shipped=(0.8, 96.0)), write_run(tmp_path / "b")]
    found, _ = differences(compare([read_recorded_run(folder) for folder in folders]))

    assert found == ()


def test_where_the_dense_network_was_slower_in_one_run_the_page_says_to_compare_shares(tmp_path: Path) -> None:
    runs = [read_recorded_run(write_run(tmp_path / name, shipped=(0.8, 96.0))) for name in "ab"]
    slower = Slower("C", runs[1])

    assert remarks_of([*compare(runs)]) == []
    assert remarks_of([compare(runs)[0], slower]) == [
        "The dense network took 2.000 ms in A and 3.000 ms in C: the machine was not equally fast, so compare the latencies in % of "
        "dense."
    ]


class Slower(Compared):
    """A run whose dense network took 3 ms."""

    @property
    def dense_ms(self) -> Estimate | None:
        return Estimate.exact(3.0)


def test_the_widths_of_runs_of_one_network_stand_side_by_side(tmp_path: Path) -> None:
    runs = [read_recorded_run(write_run(tmp_path / str(ms), shipped=(ms, 96.0))) for ms in (0.5, 1.0)]
    page = comparison_page(runs).decode()

    assert "block2.conv1" in page
    assert '<span class="count">32</span>' in page  # 0.5 / 2 of 128 channels
    assert '<span class="count">64</span>' in page  # 1.0 / 2 of them
    assert page.count('class="dot run') - 2 == 2 * len(POINTS)  # the legend names each run once


@pytest.mark.parametrize("kind", ["name", "job"])
def test_foreign_text_is_text_on_the_page(tmp_path: Path, kind: str) -> None:
    evil = "<script>alert(1)</script>\u202e"
    folder = write_run(tmp_path / ("<b>x" if kind == "name" else "x"), job={"model": evil, evil: {evil: evil}})
    page = comparison_page([read_recorded_run(folder), read_recorded_run(write_run(tmp_path / "b"))]).decode()

    assert "<script" not in page
    assert "<b>x" not in page
    assert "\u202e" not in page


def test_letters_go_on_after_z() -> None:
    unknown = RecordedRun(Path(), None, None)

    assert [run.letter for run in compare([unknown] * 28)][-3:] == ["Z", "AA", "AB"]
