"""What a killed process left is removed by the next one, and nothing else is."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs import JOB

from pipeline.core.run import open_run
from pipeline.system.files import UNUSED_S, sweep, temporary_beside, write_atomically
from pipeline.system.scratch import scratch_folder


def aged(path: Path, seconds: float = 2 * UNUSED_S) -> Path:
    os.utime(path, (time.time() - seconds,) * 2)
    return path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder of temporary files, empty."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


KILLED = """
import os, sys
from pathlib import Path
from pipeline.system.files import write_atomically
os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
write_atomically(Path(sys.argv[1]), "new")
"""


def killed_while_writing(path: Path) -> Path:
    """The temporary file that is left of a write that was killed before its rename."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = path.parent.glob(f".{path.name}.*")
    return left


def test_the_next_writer_of_a_file_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """not what another process may still be writing, which is young; nor the leftovers of another file"""
    path = tmp_path / "file"
    left = killed_while_writing(path)
    write_atomically(path, "young")
    assert left.exists()
    other = killed_while_writing(tmp_path / "other")
    aged(other)
    aged(left)
    write_atomically(path, "old")

    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["file", other.name])


def test_the_next_run_removes_what_a_killed_one_left_in_its_directory(tmp_path: Path) -> None:
    """at once, because it holds the directory: a file, and an artifact that was not whole yet"""
    with open_run(tmp_path, JOB):
        pass
    killed_while_writing(tmp_path / "dense.onnx")
    artifact = temporary_beside(tmp_path / "artifact")
    artifact.mkdir()
    (artifact / "model.onnx").touch()
    (tmp_path / ".mine.tmp").touch()
    (tmp_path / ".file.0123abcz.tmp").touch()
    with open_run(tmp_path, JOB):
        names = {path.name for path in tmp_path.iterdir()}

    assert names == {"journal.jsonl", ".mine.tmp", ".file.0123abcz.tmp"}


def test_a_link_that_is_called_like_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / ".a.01234567.tmp").symlink_to(tmp_path / "kept")
    sweep(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_leftover_of_another_user_stays(tmp_path: Path) -> None:
    left = tmp_path / ".a.01234567.tmp"
    left.touch()
    os.chown(left, 12345, -1)
    sweep(tmp_path)

    assert left.exists()


def test_a_name_with_wildcards_is_taken_as_it_is(tmp_path: Path) -> None:
    aged(killed_while_writing(tmp_path / "ab"))
    write_atomically(tmp_path / "[a]*", "x")

    assert len(list(tmp_path.iterdir())) == 2


SCRATCH = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from pipeline.system.scratch import scratch_folder
with scratch_folder("test") as folder:
    (folder / "file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


def user_of(temporary: Path) -> "tuple[subprocess.Popen[str], Path]":
    """A process that uses a scratch folder until it is ended, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRATCH, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_scratch_folder_is_gone_at_its_end_and_after_an_error(temporary: Path) -> None:
    with scratch_folder("test") as folder:
        assert folder.parent == temporary
    with pytest.raises(ValueError, match="x"), scratch_folder("test"):
        raise ValueError("x")

    assert list(temporary.iterdir()) == []


def test_the_scratch_folder_of_a_killed_process_is_removed_and_one_in_use_is_not(temporary: Path) -> None:
    killed, left = user_of(temporary)
    alive, used = user_of(temporary)
    killed.kill()
    killed.communicate()
    (temporary / "compress-scratch-mine").mkdir()
    for path in (left, used, temporary / "compress-scratch-mine"):
        aged(path)
    with scratch_folder("test"):
        pass
    assert {path.name for path in temporary.iterdir()} == {used.name, "compress-scratch-mine"}
    assert (used / "file").exists()
    alive.communicate("")

    assert [path.name for path in temporary.iterdir()] == ["compress-scratch-mine"]


def test_a_young_scratch_folder_is_left_alone(temporary: Path) -> None:
    killed, left = user_of(temporary)
    killed.kill()
    killed.communicate()
    with scratch_folder("test"):
        pass

    assert left.exists()


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(temporary: Path) -> None:
    folder = temporary / "compress-scratch-x"
    folder.mkdir()
    os.mkfifo(folder / "held")
    aged(folder)
    with scratch_folder("test") as own:
        assert own.is_dir()

    assert folder.exists()


def test_a_worker_s_folder_that_is_held_is_not_removed(temporary: Path) -> None:
    from pipeline.probe import worker

    folder = temporary / "compress-probe-extra"
    folder.mkdir()
    held = worker.hold(str(folder))
    aged(folder)
    own, own_held = worker.working_folder()
    assert folder.exists()
    fcntl.flock(held, fcntl.LOCK_UN)
    held.close()
    aged(folder)
    own_held.close()
    worker.working_folder()[1].close()

    assert not folder.exists()
    assert Path(own).exists()
