"""The run directory: what was recorded is found again, by one process at a time, whatever ended the one before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import JOB, journal, trial
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.journal import read_journal
from pipeline.core.measurement import Failure
from pipeline.core.run import open_run, read_trials
from pipeline.errors import OtherJob, RunError, RunLocked, StorageError
from pipeline.foreign_text import shorten


def test_candidates_come_back_as_they_were(tmp_path: Path) -> None:
    """one measured, one failed, one without a score; the failed one is as good as the others to the journal"""
    trials = [
        trial(1),
        trial(2, measurement=None, score=None, failure=Failure("segfault", 'a "quoted"\nreason')),
        trial(3, score=None, plan={}),
    ]
    with open_run(tmp_path, JOB) as run:
        for each in trials:
            run.record(each)
    with open_run(tmp_path, JOB) as again:
        assert again.trials == trials
        assert again.find("search", 2) == trials[1]
        assert again.find("search", 4) is None
        assert again.find("finalist", 1) is None
    assert read_trials(tmp_path) == trials


def test_figures_that_were_derived_before_are_not_kept(tmp_path: Path) -> None:
    """The journal holds raw runs; what follows from them is derived again."""
    derived = trial(1)
    assert derived.candidate.measurement
    assert derived.candidate.measurement.latency_p50_ms.value > 0
    with open_run(tmp_path, JOB) as run:
        run.record(derived)
    line = json.loads(journal(tmp_path).read_text().splitlines()[-1])

    assert set(line["trial"]["candidate"]["measurement"]) == {
        "fingerprint",
        "structure",
        "processes",
        "memory",
        "remarks",
        "before",
        "after",
        "calibration",
        "board",
        "others",
        "every_board",
    }
    assert read_trials(tmp_path) == [derived]


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_torn_last_line_is_cut_wherever_it_was_torn(tmp_path_factory: pytest.TempPathFactory, where: int) -> None:
    folder = tmp_path_factory.mktemp("run")
    with open_run(folder, JOB) as run:
        run.record(trial(1))
        whole = journal(folder).stat().st_size
        run.record(trial(2))
    data = journal(folder).read_bytes()
    journal(folder).write_bytes(data[: whole + where % (len(data) - whole)])

    assert read_trials(folder) == [trial(1)]
    with open_run(folder, JOB) as again:
        assert again.trials == [trial(1)]
        again.record(trial(2))
    assert journal(folder).read_bytes() == data


def test_a_run_that_was_torn_in_its_very_first_line_begins_anew(tmp_path: Path) -> None:
    journal(tmp_path).write_text('{"kind":"job","fo')
    with open_run(tmp_path, JOB) as run:
        assert run.trials == []

    line = json.loads(journal(tmp_path).read_text())
    assert {key: line[key] for key in line if key != "checksum"} == {"kind": "job", "format": 2, "facts": JOB}


def test_a_choice_is_recorded_once_however_often_the_run_is_continued(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path, JOB) as run:
            run.record_choice("8 trials chose SGD")
            run.record_choice("64 steps in 1 round")
    journal = read_journal((tmp_path / "journal.jsonl").read_bytes())

    assert journal.choices == ("8 trials chose SGD", "64 steps in 1 round")
    assert journal.damage == ()


def test_another_job_is_refused_with_exactly_what_differs(tmp_path: Path) -> None:
    with open_run(tmp_path, {"model": "digits", "seed": 0, "epochs": 20, "notes": "x" * 100}):
        pass
    with pytest.raises(OtherJob) as refused, open_run(tmp_path, {"model": "vgg", "seed": 0, "trials": [1], "notes": "y"}):
        pass

    assert str(refused.value) == (
        f'{tmp_path}: holds another job (epochs: 20 in the directory, not set now; model: "digits" in the directory, "vgg" now; '
        f'notes: {shorten(json.dumps("x" * 100), 60)} in the directory, "y" now; trials: not set in the directory, [1] now); choose another --out, or remove the directory'
    )


def test_other_inputs_are_refused_too(tmp_path: Path) -> None:
    """the same command, and a weights file that has changed meanwhile"""
    with open_run(tmp_path, JOB) as run:
        run.bind("inputs", {"weights": "abc", "shape": (1, 2)})
    with open_run(tmp_path, JOB) as run:
        run.bind("inputs", {"weights": "abc", "shape": (1, 2)})
        with pytest.raises(OtherJob, match='weights: "abc" in the directory, "def" now'):
            run.bind("inputs", {"weights": "def", "shape": (1, 2)})


def test_a_second_process_is_kept_out_until_the_first_has_ended(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from pipeline.core.run import open_run
with open_run(Path(sys.argv[1]), {JOB}):
    print("open", flush=True)
    sys.stdin.read()
"""
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "open\n"
    before = journal(tmp_path).read_bytes()

    with pytest.raises(RunLocked, match="another process uses this run directory"), open_run(tmp_path, {"another": "job"}):
        pass
    assert journal(tmp_path).read_bytes() == before
    assert read_trials(tmp_path) == []
    first.kill()
    first.communicate()
    with open_run(tmp_path, JOB) as run:
        assert run.trials == []


def test_a_journal_of_another_format_is_named(tmp_path: Path) -> None:
    journal(tmp_path).write_text('{"kind": "job", "format": 99, "facts": {}}\n')

    with pytest.raises(RunError, match=r"journal\.jsonl:1: format 99; this program reads 2"), open_run(tmp_path, JOB):
        pass


def test_phases_add_up_over_processes(tmp_path: Path) -> None:
    """search in two processes, the first of which was cut short; measure in one"""
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, JOB) as run, run.phase("search"):
        raise KeyboardInterrupt
    with open_run(tmp_path, JOB) as run:
        with run.phase("measure"):
            assert set(run.phase_seconds()) == {"search", "measure"}
        with run.phase("search"):
            pass
        seconds = [json.loads(line) for line in journal(tmp_path).read_text().splitlines()]
        expected = {
            name: pytest.approx(sum(line["seconds"] for line in seconds if line.get("name") == name), abs=1e-3)
            for name in ("search", "measure")
        }
        assert run.phase_seconds() == expected
    with open_run(tmp_path, JOB) as again:
        assert again.phase_seconds() == expected
    assert [line.get("name") for line in seconds] == [None, "search", "measure", "search"]


# Records trials until the disk is full, 64 KiB or so, and then once more with room again.
FULL_DISK = """
import json, resource, sys
from pathlib import Path
from pipeline.core.journal import read_journal
from pipeline.core.run import Trial, open_run, read_trials
from helpers.runs import JOB, trial
folder, number = Path(sys.argv[1]), 0
with open_run(folder, JOB) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    try:
        while True:
            run.record(trial(number + 1))
            number += 1
    except Exception as problem:
        print(type(problem).__name__)
    print(read_trials(folder) == run.trials and len(run.trials) == number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.record(trial(number + 1))
print(len(read_trials(folder)) - number, (folder / "journal.jsonl").stat().st_size > 65536)
print(read_journal((folder / "journal.jsonl").read_bytes()).damage)
"""


def test_a_disk_that_fills_up_leaves_no_half_line(tmp_path: Path) -> None:
    """What could not be kept is not there at all, and the next record follows the last whole one."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )

    assert (done.stdout.split(), done.stderr) == ([StorageError.__name__, "True", "1", "True", "()"], "")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match=f"{tmp_path}/{place}: cannot be written"), open_run(tmp_path / place, JOB):
        pass


def test_trials_of_a_directory_without_a_journal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"journal\.jsonl: cannot be read \(No such file or directory\)"):
        read_trials(tmp_path)


def test_budgets_share_the_journal_and_have_artifacts_and_checkpoints_of_their_own(tmp_path: Path) -> None:
    with open_run(tmp_path, JOB) as run:
        first, second = run.for_budget("params-50", 0), run.for_budget("params-25", 1)
        first.record(trial(1))
        with second.phase("ship"):
            pass

        assert [each.number for each in second.trials] == [1]
        assert list(run.phase_seconds()) == ["ship"]
        assert [each.artifact.name for each in (run, first, second)] == ["artifact", "artifact-params-50", "artifact-params-25"]
        assert len({each.checkpoint for each in (run, first, second)}) == 3
        assert first.first_number != second.first_number
        assert run.for_budget("", 0) is run
