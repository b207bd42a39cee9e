"""Refusals that take two commands, another process, or a signal."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.places import DIGITS, TRAINED, Place, message, nothing_but_the_journal, one_line
from helpers.small_net import SMALL_NET

from pipeline.cli.main import compress
from pipeline.core.run import read_trials
from pipeline.errors import Interrupted, OtherJob, RunError, RunLocked, StorageError

pytestmark = pytest.mark.starts_first

MAIN = (sys.executable, "-c", "from pipeline.cli.main import main; main()")


# the run directory


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (("--trials", "4"), "trials: 3 in the directory, 4 now"),
        (("--seed", "1"), "seed: 0 in the directory, 1 now"),
        (("--searcher", "uniform"), 'searcher: "random" in the directory, "uniform" now'),
        (("--budget", "params=50%"), 'budget: {"latency_p50": "50.0 %", "accuracy_drop": "2.00 points"} in the directory, {'),
        (("--trials", "4", "--seed", "1"), "seed: 0 in the directory, 1 now; trials: 3 in the directory, 4 now"),
    ],
)
def test_the_directory_of_another_job_is_refused_with_the_difference(
    place: Place, change: tuple[str, ...], difference: str
) -> None:
    """The first job ends early, for want of images; its directory is still its own."""
    job = ("--out", str(place.out), *DIGITS, "--data", "nowhere")
    CliRunner().invoke(compress, job)
    before = (place.out / "journal.jsonl").read_bytes()
    said = message((*job, *change), OtherJob)

    assert said.startswith(f"{place.out}: holds another job ({difference}")
    assert said.endswith("); choose another --out, or remove the directory")
    assert (place.out / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("changed", ["images", "weights", "preprocessing"])
def test_the_directory_of_the_same_job_on_other_inputs_is_refused(place: Place, changed: str) -> None:
    """The command is the same; what it reads is not. The first run ends early, its budget is out of reach."""
    torch.save(small_weights(1.0), place.folder / "net.pt")
    job = (*place.net(), "--out", str(place.out), "--weights", str(place.folder / "net.pt"), "--budget", "params=1%")
    assert CliRunner().invoke(compress, job).exit_code == 13
    if changed == "images":
        (place.folder / "images/train/cat/000.png").unlink()
    elif changed == "weights":
        torch.save(small_weights(2.0), place.folder / "net.pt")
    else:
        yaml = "size: 8\nmean: [0.4, 0.4, 0.4]\nstd: [0.5, 0.5, 0.5]\n"
        (place.folder / "images" / "preprocessing.yaml").write_text(yaml)
    said = message(job, OtherJob)

    assert said.startswith(f"{place.out}: holds another job ({'data' if changed == 'images' else changed}: ")


def small_weights(value: float) -> dict[str, torch.Tensor]:
    shapes = {"a": (8, 3, 3, 3), "b": (8, 8, 3, 3), "head": (2, 8)}
    weights = {f"{name}.weight": torch.full(shape, value) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}


def test_a_directory_where_another_process_works_is_refused(place: Place) -> None:
    place.out.mkdir()
    with (place.out / "journal.jsonl").open("w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        said = message((*DIGITS, "--out", str(place.out)), RunLocked)

    assert said == f"{place.out}: another process uses this run directory; wait until it has finished, or choose another --out"
    assert (place.out / "journal.jsonl").read_text() == ""


def test_a_journal_of_another_program_is_refused_and_left_alone(place: Place) -> None:
    place.out.mkdir()
    (place.out / "journal.jsonl").write_text("dear diary\n")
    said = message((*DIGITS, "--out", str(place.out)), RunError)

    assert said == f"{place.out}/journal.jsonl:1: not a journal line of this program (it is not JSON); choose another --out"
    assert (place.out / "journal.jsonl").read_text() == "dear diary\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_refused(place: Place) -> None:
    place.out.mkdir(mode=0o500)
    said = message((*DIGITS, "--out", str(place.out)), StorageError)

    assert said.startswith(str(place.out))
    assert said.endswith("cannot be written (Permission denied); choose another --out")


# what libraries would like to add to the one line

Spoil = Callable[[Place], tuple[str, ...]]


def scripted(place: Place) -> tuple[str, ...]:
    with pytest.warns(FutureWarning, match=r"torch\.jit"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(place.folder / "net.pt"))
    return *DIGITS, "--weights", str(place.folder / "net.pt")


def torn_tiff(place: Place) -> tuple[str, ...]:
    """A file that Pillow says something about on its own."""
    entry = (277).to_bytes(2, "little") + b"\x03\x00\x01\x00\x00\x00\xff\xff\x00\x00"  # 65,535 samples per pixel
    tiff = b"II*\x00\x08\x00\x00\x00\x01\x00" + entry + b"\x00\x00\x00\x00"
    return place.images(lambda root: (root / "train/cat/x.tif").write_bytes(tiff))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(scripted, 22), pytest.param(torn_tiff, 33, marks=pytest.mark.slow), (lambda place: place.net("Undecided"), 23)],
    ids=["torch about TorchScript", "Pillow about a torn file", "the exporter about control flow"],
)
def test_no_library_adds_to_the_one_line(place: Place, spoil: Spoil, code: int) -> None:
    """In a process of its own, where nothing holds back warnings or logs."""
    result = subprocess.run(
        (*MAIN, *spoil(place), "--quiet", "--out", str(place.out)), capture_output=True, text=True, check=False
    )

    assert result.returncode == code, result.stderr
    assert one_line(result.stderr)
    assert result.stdout == ""
    assert nothing_but_the_journal(place.out)


# Ctrl-C


def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """SIGINT once two trials are in the journal; the second time they are kept, and the rest of eight comes."""
    out = tmp_path / "run"
    job = (
        "--target",
        "raspberrypi",
        "--model",
        SMALL_NET,
        "--dry-run",
        "--trials",
        "8",
        "--supernet",
        "2",
        *TRAINED,
        "--searcher",
        "random",
        "--out",
        str(out),
    )
    process = subprocess.Popen(
        (*MAIN, *job), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    journal = out / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and journal.read_text().count('"role":"search"') >= 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == Interrupted.exit_code
    assert one_line(stderr) == ("interrupted; all finished trials are saved: run the same command again to continue")
    assert nothing_but_the_journal(out)

    kept = read_trials(out)
    again = CliRunner().invoke(compress, job, catch_exceptions=False)
    trials = read_trials(out)

    assert again.exit_code in (0, 14)
    assert len([trial for trial in kept if trial.role == "search"]) < 8
    assert trials[: len(kept)] == kept
    assert [trial.number for trial in trials if trial.role == "search"] == list(range(1, 9))
    assert (out / "artifact" / "model.onnx").is_file()
