"""A run directory as it lies there: finished, killed, damaged, of an older version, or of someone else."""

import shutil
from pathlib import Path

import pytest
from helpers.recorded import POINTS, write_run

from pipeline.core.budget import Constraint
from pipeline.errors import RunError
from pipeline.packaging.report.page import report_page
from pipeline.packaging.report.recorded_run import read_recorded_run
from pipeline.packaging.report.report import page_of_runs

OLD = Path(__file__).parents[1] / "data_of_older_versions" / "2026-11-23"


def limits(constraints: tuple[Constraint, ...]) -> dict[str, tuple[float, bool]]:
    return {each.metric.key: (each.limit, each.relative) for each in constraints}


def test_a_killed_run_says_what_is_known_and_that_it_is_unfinished(tmp_path: Path) -> None:
    run = read_recorded_run(write_run(tmp_path / "run"))
    best = run.best()
    page = page_of_runs([run]).decode()

    assert limits(run.constraints) == {"latency_p50": (0.5, True), "accuracy_drop": (2.0, False)}
    assert [evaluation.feasible for evaluation in run.evaluations] == [ms / 2 <= 0.5 for ms, _ in POINTS]
    assert best is not None
    assert best.number == 2  # trial 3 scores more, and takes more than half of the dense network's time
    assert "Unfinished. The run is still going on, or it was stopped." in page
    assert "4 of 60 trials; 3 are within the budget" in page
    assert page.count('<span class="tip') == len(POINTS)


@pytest.mark.parametrize("share", [0, 0.2, 0.45, 0.8])
def test_a_run_killed_at_any_moment_has_a_page(tmp_path: Path, share: float) -> None:
    path = write_run(tmp_path / "run") / "journal.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])

    assert "Unfinished" in page_of_runs([read_recorded_run(tmp_path / "run")]).decode()


def test_the_page_of_a_finished_run_is_that_of_its_artifact(tmp_path: Path) -> None:
    run = read_recorded_run(write_run(tmp_path / "run", shipped=(0.8, 96.0)))
    assert run.artifact

    page = page_of_runs([run])

    assert page == report_page(run.artifact, run.trials("search"), run.evaluations, run.constraints)
    assert b"Unfinished" not in page
    assert b"could not be" not in page


@pytest.mark.parametrize("where", [OLD, OLD / "artifact"], ids=["run", "artifact in it"])
def test_a_run_of_an_older_version_is_read_from_its_directory_and_from_its_artifact(where: Path) -> None:
    run = read_recorded_run(where)
    page = page_of_runs([run]).decode()

    assert run.remarks == ()
    assert page.count('<span class="tip') == 2
    assert "accuracy (test) 55.43 %" in page


def test_an_artifact_without_its_run_has_a_page_without_trials(tmp_path: Path) -> None:
    shutil.copytree(OLD / "artifact", tmp_path / "sent")
    run = read_recorded_run(tmp_path / "sent")

    assert run.trials("search") == []
    assert "digits on Raspberry Pi 4 Model B (4 GB)" in page_of_runs([run]).decode()


def test_a_changed_file_and_a_damaged_line_are_remarks_and_hide_nothing(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "run")
    (tmp_path / "run" / "artifact" / "model.onnx").write_bytes(b"another")
    with (tmp_path / "run" / "journal.jsonl").open("ab") as file:
        file.write(b"not a line\n")
    run = read_recorded_run(tmp_path / "run")

    assert run.remarks == (
        "damaged lines of the journal were left out: 1 (the first: 19)",
        "files of the artifact are missing or changed: model.onnx",
    )
    assert all(remark in page_of_runs([run]).decode() for remark in run.remarks)


def test_an_artifact_that_cannot_be_read_leaves_what_the_journal_has(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", shipped=(0.8, 96.0))
    (folder / "artifact" / "artifact.json").write_text("{}")
    run = read_recorded_run(folder)

    assert run.artifact is None
    assert run.remarks[0].startswith("the artifact cannot be read: ")
    assert "4 of 60 trials" in page_of_runs([run]).decode()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder; give a run directory, such as runs/NAME, or an artifact's folder"),
        (lambda path: path.write_text("x"), "no such folder"),
        (lambda path: path.mkdir(), "no run: it has neither journal.jsonl nor artifact.json"),
        (lambda path: (path.mkdir(), (path / "journal.jsonl").mkdir()), "cannot be read (not a regular file)"),
        (lambda path: (path.mkdir(), (path / "journal.jsonl").write_text("x\n")), "not a journal line of this program"),
        (lambda path: (path.mkdir(), (path / "artifact.json").write_text("{}")), "damaged, or written by another version"),
    ],
    ids=["missing", "file", "empty", "folder", "text", "artifact"],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "run")  # type: ignore[operator]

    with pytest.raises(RunError) as refused:
        read_recorded_run(tmp_path / "run")

    assert message in str(refused.value)
    assert "--out" not in str(refused.value)
