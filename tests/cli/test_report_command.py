"""`compress report`: where the page goes, and what is not overwritten."""

import json
import os
from pathlib import Path

import pytest
from helpers.profiles import command
from helpers.recorded import write_run

from pipeline.errors import RunError, StorageError


def test_the_page_of_one_run_lies_in_its_directory_and_can_be_written_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", shipped=(0.8, 96.0))
    before = (run / "artifact" / "artifact.json").read_bytes()
    results = [command("report", run) for _ in range(2)]

    assert [(result.exit_code, result.stdout) for result in results] == [(0, f"{run / 'report.html'}\n")] * 2
    assert "Budget met" in (run / "report.html").read_text()
    assert sorted(path.name for path in run.iterdir()) == ["artifact", "journal.jsonl", "report.html"]
    assert [path.name for path in (run / "artifact").iterdir()] == ["artifact.json"]
    assert (run / "artifact" / "artifact.json").read_bytes() == before


def test_the_page_of_several_runs_lies_beside_the_first(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", shipped=(0.8, 96.0)), write_run(tmp_path / "b")]
    result = command("report", *runs, "--json")

    assert json.loads(result.stdout) == {
        "page": str(tmp_path / "comparison.html"),
        "runs": [
            {"folder": str(runs[0]), "verdict": "within", "finished": True, "trials": 4, "remarks": []},
            {"folder": str(runs[1]), "verdict": None, "finished": False, "trials": 4, "remarks": []},
        ],
    }
    assert "<h1>2 runs</h1>" in (tmp_path / "comparison.html").read_text()


def test_a_page_of_someone_else_is_not_overwritten_unless_it_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "report.html").write_text("mine")
    refused = command("report", run)
    kept = (run / "report.html").read_text()
    named = command("report", run, "--out", run / "report.html")

    assert (refused.exit_code, kept, named.exit_code) == (StorageError.exit_code, "mine", 0)
    assert refused.stderr.endswith("is another file, which would be overwritten; remove it, or choose another --out\n")


def test_no_file_is_added_to_an_artifact(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", shipped=(0.8, 96.0)) / "artifact"
    (tmp_path / "link").symlink_to(folder)
    for out in (folder / "page.html", tmp_path / "link" / "page.html"):
        assert command("report", tmp_path / "run", "--out", out).exit_code == StorageError.exit_code

    assert [path.name for path in folder.iterdir()] == ["artifact.json"]


def test_what_is_no_run_ends_with_one_line_and_its_code(tmp_path: Path) -> None:
    result = command("report", write_run(tmp_path / "run"), tmp_path / "missing")

    assert result.exit_code == RunError.exit_code
    assert result.stderr == (
        f"compress: {tmp_path / 'missing'}: no such folder; give a run directory, such as runs/NAME, or an artifact's folder\n"
    )
    assert not (tmp_path / "comparison.html").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    run.chmod(0o500)
    result = command("report", run)
    run.chmod(0o700)

    assert result.exit_code == StorageError.exit_code
