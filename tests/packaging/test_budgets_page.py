"""The page of a run for several budgets, also of one that was stopped between two of them."""

import json
from pathlib import Path

import pytest
from helpers.profiles import command
from helpers.recorded import CHANNELS, finished, planned, write_run

from pipeline.core.artifact import dump_artifact
from pipeline.packaging.report.budgets import write_budgets_page
from pipeline.packaging.report.recorded_run import read_recorded_runs

TEXTS = [f"latency p50 <= {limit} % of dense" for limit in ("50.0", "35.0", "25.0")]
JOB = {"budget": {"latency_p50": "50.0 %, 35.0 %, 25.0 %", "accuracy_drop": "2.00 points"}}
SHIPPED = {"latency_p50-50": (0.9, 97.0), "latency_p50-35": (0.6, 90.0), "latency_p50-25": (0.4, 80.0)}
"""Folder -> latency in ms and accuracy. The dense network takes 2 ms."""


def write_budgets(folder: Path, *names: str) -> Path:
    """A run for three budgets, of which those called `names` are finished. Its four trials take 30 to 60 % of the latency."""
    run = write_run(folder, job=JOB)
    for name in names:
        (run / f"artifact-{name}").mkdir()
        kept = planned(*SHIPPED[name], kept=SHIPPED[name][0] / 2)
        found = finished(planned(2.0, 97.0, kept=1.0), kept)
        (run / f"artifact-{name}" / "artifact.json").write_bytes(dump_artifact(found))
    return run


def test_a_run_for_several_budgets_is_read_as_one_run_for_each(tmp_path: Path) -> None:
    run = write_budgets(tmp_path / "run", "latency_p50-50", "latency_p50-35")
    found = read_recorded_runs(run)

    assert [each.name for each in found] == [f"run, {text}" for text in TEXTS]
    assert [each.artifact is not None for each in found] == [True, True, False]
    assert [len(each.trials("search")) for each in found] == [4, 4, 4]


def test_an_unfinished_budget_shows_its_own_best_plan_and_no_other_budgets(tmp_path: Path) -> None:
    """Trials at 40, 45, 60 and 30 % of the latency, with scores 96, 97, 97.5 and 90"""
    found = read_recorded_runs(write_budgets(tmp_path / "run"))
    best = [each.best() for each in found]

    assert [trial.candidate.score if trial else None for trial in best] == [97.0, 90.0, None]
    assert found[1].job["budget"] == {"latency_p50": "35.0 %", "accuracy_drop": "2.00 points"}


def test_the_folder_of_one_artifact_is_its_budget(tmp_path: Path) -> None:
    run = write_budgets(tmp_path / "run", *SHIPPED)
    (found,) = read_recorded_runs(run / "artifact-latency_p50-35")

    assert found.budget is not None
    assert (found.budget.text, len(found.trials("search"))) == (TEXTS[1], 4)


def test_the_page_shows_every_budget_the_front_and_the_shared_trials_once(tmp_path: Path) -> None:
    run = write_budgets(tmp_path / "run", *SHIPPED)
    result = command("report", run, "--json")
    page = (run / "report.html").read_text()

    assert json.loads(result.stdout)["page"] == str(run / "report.html")
    assert [each["budget"] for each in json.loads(result.stdout)["runs"]] == TEXTS
    assert "<h1>3 budgets of one run</h1>" in page
    assert "Pareto front" in page
    assert all(name in page for name in CHANNELS)
    assert page.count("run A, B, C") == 2 * 4  # the figures and the label of each trial


@pytest.mark.parametrize("before", [None, '<meta name="generator" content="compress">'])
def test_the_page_is_written_at_the_end_of_a_run(tmp_path: Path, before: str | None) -> None:
    run, said = write_budgets(tmp_path / "run", *SHIPPED), list[str]()
    if before:
        (run / "report.html").write_text(before)
    write_budgets_page(run, said.append)

    assert "3 budgets of one run" in (run / "report.html").read_text()
    assert said == []


def test_a_page_of_someone_else_is_kept(tmp_path: Path) -> None:
    run, said = write_budgets(tmp_path / "run", *SHIPPED), list[str]()
    (run / "report.html").write_text("mine")
    write_budgets_page(run, said.append)

    assert (run / "report.html").read_text() == "mine"
    assert "is another file" in said[0]


def test_a_page_that_fails_costs_no_artifact(tmp_path: Path) -> None:
    """The directory has no journal"""
    said = list[str]()
    write_budgets_page(tmp_path, said.append)

    assert "could not be written (RunError" in said[0]
