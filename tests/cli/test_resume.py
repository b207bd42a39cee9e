"""Nothing is lost: a run killed at any moment and started again ends as if it had never been killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.small_net import SMALL_NET

from pipeline.cli.main import compress

pytestmark = pytest.mark.starts_first

ARGUMENTS = (
    "--target",
    "raspberrypi",
    "--model",
    SMALL_NET,
    "--dry-run",
    "--trials",
    "8",
    "--supernet",
    "4",
    "--epochs",
    "2",
    "--learning-rate",
    "0.05",
    "--seed",
    "5",
    "--quiet",
)


def start(out: Path) -> "subprocess.Popen[bytes]":
    command = (sys.executable, "-c", "from pipeline.cli.main import main; main()", *ARGUMENTS, "--out", str(out))
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def trials(out: Path) -> list[dict[str, object]]:
    """What the journal holds of each trial, without how long it took."""
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines() if line.endswith("}")]
    return [{**line["trial"], "seconds": None} for line in lines if line["kind"] == "trial"]


def searched(count: int) -> Callable[[Path], bool]:
    return lambda out: (out / "journal.jsonl").is_file() and (out / "journal.jsonl").read_text().count('"role":"search"') >= count


def fine_tuning(out: Path) -> bool:
    return (out / "finetune.safetensors").is_file()


def kill_when(out: Path, moment: Callable[[Path], bool]) -> None:
    """SIGKILL, which no program can catch, as soon as `moment` has come."""
    with start(out) as process:
        try:
            while process.poll() is None and not moment(out):
                time.sleep(0.01)
        finally:
            process.kill()
        process.communicate()

    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def finish(out: Path) -> None:
    """In this process, which has imported everything already."""
    result = CliRunner().invoke(compress, (*ARGUMENTS, "--out", str(out)), catch_exceptions=False)

    assert result.exit_code in (0, 14), result.output


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    finish(out)
    return out


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param((searched(3), fine_tuning), id="while searching, then while fine-tuning"),
        pytest.param((searched(1), searched(4), searched(7)), id="three times while searching", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_never_killed(
    tmp_path: Path, unbroken: Path, moments: tuple[Callable[[Path], bool], ...]
) -> None:
    """The same trials, none measured twice; the same file, byte for byte."""
    out = tmp_path / "run"
    for moment in moments:
        kill_when(out, moment)
    finish(out)

    assert trials(out) == trials(unbroken)
    assert (out / "artifact" / "model.onnx").read_bytes() == (unbroken / "artifact" / "model.onnx").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in unbroken.iterdir())


def test_a_finished_run_is_not_done_again(unbroken: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    assert CliRunner().invoke(compress, (*ARGUMENTS, "--out", str(unbroken))).exit_code in (0, 14)

    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == before
