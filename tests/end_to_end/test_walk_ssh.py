"""The whole walk with the device in its loop: a real server, lost in the middle of the search, and lost for good."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from helpers.places import TRAINED
from helpers.profiles import command, there, to_walk
from helpers.small_net import SMALL_NET
from helpers.sshd import Board, needs_sshd

from pipeline.core.artifact import read_artifact
from pipeline.core.run import read_trials
from pipeline.errors import DeviceUnreachable, ProfileError

pytestmark = [pytest.mark.starts_first, needs_sshd]


def run(board: Board, folder: Path, **probe: float) -> Result:
    """Three random plans of a small network."""
    target = to_walk(folder, board, final_processes=2, **probe)
    return command(
        "--target",
        target,
        "--model",
        SMALL_NET,
        "--trials",
        3,
        "--supernet",
        2,
        *TRAINED,
        "--searcher",
        "random",
        "--out",
        folder / "run",
        "--json",
    )


def after_the_first_trial(folder: Path, happens: Callable[[], None]) -> threading.Thread:
    journal = folder / "run" / "journal.jsonl"

    def wait() -> None:
        while not (journal.is_file() and '"role":"search"' in journal.read_text()):
            time.sleep(0.02)
        happens()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Board, Path]]:
    """A device and the folder of a finished run that lost its connection to it in the middle of its search."""
    folder = tmp_path_factory.mktemp("dropped")
    board = Board(folder / "board")
    board.start()

    def drop() -> None:
        for pid in board.connections():
            os.kill(pid, signal.SIGKILL)

    dropping = after_the_first_trial(folder, drop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESS_CACHE_DIR", str(folder / "cache"))
        done = run(board, folder)
    dropping.join()
    assert done.exit_code == 0, done.output
    yield board, folder
    board.stop()


def test_a_search_goes_on_where_its_connection_dropped(dropped: tuple[Board, Path]) -> None:
    """every trial is there once, and every figure is the device's"""
    _, folder = dropped
    artifact = read_artifact(folder / "run" / "artifact")

    assert artifact.shipped.measurement is not None
    assert artifact.shipped.measurement.fingerprint.mode == "device"
    assert [trial.number for trial in read_trials(folder / "run") if trial.role == "search"] == [1, 2, 3]


def test_what_a_run_packs_can_be_shipped_to_the_device_that_it_was_measured_on(dropped: tuple[Board, Path]) -> None:
    """signed on the way, with a key that is made for that, said aloud; its own budget is what it is held to there"""
    board, folder = dropped
    words = ("ship", "--target", folder / "board.yaml", "--keys", folder / "keys", folder / "run" / "artifact")
    first, again = (command(*words) for _ in range(2))

    assert first.exit_code == again.exit_code == 0, first.output
    assert "note: created the signing key" in first.stderr
    assert again.stderr == ""
    assert "shipped" in first.stdout
    assert "already active" in again.stdout
    serving = json.loads((board.home / "compress" / "current" / "serving.json").read_text())
    assert serving["limits"] == {"latency_p50_ms": 1000.0}


def test_a_device_that_is_gone_ends_the_run_which_goes_on_when_it_is_back(board: Board, tmp_path: Path) -> None:
    stopping = after_the_first_trial(tmp_path, board.stop)
    lost = run(board, tmp_path, reconnect_s=1)
    stopping.join()
    kept = read_trials(tmp_path / "run")

    assert lost.exit_code == DeviceUnreachable.exit_code, lost.output
    assert "run the same command again" in lost.stderr
    board.start()
    done = run(board, tmp_path, reconnect_s=1)

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["figures"] == "device"
    assert read_trials(tmp_path / "run")[: len(kept)] == kept


OLDER = """
import os, sys
sys.path.remove(os.path.dirname(__file__))
del sys.modules["onnxruntime"]
import onnxruntime
onnxruntime.__version__ = "1.17.3"
"""


def test_the_runtime_that_is_really_there_decides_what_file_it_can_be_given(board: Board, tmp_path: Path) -> None:
    """the profile says nothing of its version; asked, it says 1.17.3, which does not read opset 21"""
    package = board.folder / "older"
    package.mkdir()
    (package / "onnxruntime.py").write_text(OLDER)
    board.environment = {"PYTHONPATH": str(package)}
    board.write_python()
    target = there(tmp_path, board, {"opset": 21})
    refused = command("--target", target, "--budget", "latency_p50=50%", "--out", tmp_path / "run")

    assert refused.exit_code == ProfileError.exit_code
    assert refused.stderr.splitlines()[-1] == (
        "compress: board: runtime: onnxruntime 1.17.3 reads files up to opset 20 (got 21); remove opset from the profile, set it to 20 or less, or "
        "install a later onnxruntime on the device"
    )
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["journal.jsonl"]
