"""What is said to be on the disk is there: files and folders are flushed, in the order that a power cut asks for."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.readers import write_artifact
from helpers.runs import JOB, trial

from pipeline.core.artifact import read_artifact
from pipeline.core.journal import sealed
from pipeline.core.run import open_run
from pipeline.deploy import agent as device
from pipeline.packaging.pack import pack
from pipeline.system.files import write_atomically


class Flush(NamedTuple):
    """One fsync: of what, and what was to be seen at that moment."""

    path: Path
    data: bytes | None
    """Of a file; null of a folder."""
    names: tuple[str, ...]
    """In the folder; in a file's own folder."""
    target: bytes | None
    """What stood at the place that is watched."""


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], list[Flush]]:
    """Watch a place: the list grows with every call of the real fsync. Temporary files are called 'temporary'."""
    real = os.fsync

    def watch(target: Path) -> list[Flush]:
        seen: list[Flush] = []

        def fsync(descriptor: int) -> None:
            real(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            names = tuple(sorted(each.name for each in (path if folder else path.parent).iterdir()))
            seen.append(
                Flush(path, None if folder else path.read_bytes(), names, target.read_bytes() if target.is_file() else None)
            )

        monkeypatch.setattr(os, "fsync", fsync)
        return seen

    return watch


def writers() -> dict[str, Callable[[Path, bytes], object]]:
    return {"write_atomically": write_atomically, "the device's agent": lambda path, data: device.write_whole(str(path), data)}


@pytest.mark.parametrize("name", writers())
def test_a_file_is_flushed_before_it_takes_its_place_and_the_folder_after_that(
    tmp_path: Path, flushes: Callable[[Path], list[Flush]], name: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    seen = flushes(path)
    writers()[name](path, b"new" * 1000)
    first, second = seen

    assert (first.data, first.target) == (b"new" * 1000, b"old")
    assert first.path.parent == tmp_path
    assert (second.path, second.target) == (tmp_path, b"new" * 1000)
    assert second.names == ("file",)


def test_a_trial_is_flushed_before_anything_follows_from_it(tmp_path: Path, flushes: Callable[[Path], list[Flush]]) -> None:
    with open_run(tmp_path, JOB) as run:
        seen = flushes(run.folder / "journal.jsonl")
        run.record(trial(1))
        (flush,) = seen

        assert flush.path == tmp_path / "journal.jsonl"
        assert flush.data is not None
        assert flush.data.count(b'"kind":"trial"') == 1
        assert flush.data.endswith(b"}\n")


def test_a_new_run_directory_is_flushed_with_the_folder_that_holds_it(
    tmp_path: Path, flushes: Callable[[Path], list[Flush]]
) -> None:
    """first the name of the directory, then the name of the journal, then the line of the job"""
    seen = flushes(tmp_path / "run" / "journal.jsonl")
    with open_run(tmp_path / "run", JOB):
        pass

    assert [(flush.path, flush.names) for flush in seen] == [
        (tmp_path, ("run",)),
        (tmp_path / "run", ("journal.jsonl",)),
        (tmp_path / "run" / "journal.jsonl", ("journal.jsonl",)),
    ]


def test_damaged_lines_are_flushed_beside_the_journal_before_they_leave_it(
    tmp_path: Path, flushes: Callable[[Path], list[Flush]]
) -> None:
    with open_run(tmp_path, JOB) as run:
        run.record(trial(1))
    path = tmp_path / "journal.jsonl"
    sound = path.read_bytes()
    path.write_bytes(sound + b"foreign\n" + sealed({"kind": "phase", "name": "search", "seconds": 1.0}))
    damaged = path.read_bytes()
    seen = flushes(path)
    with open_run(tmp_path, JOB):
        pass
    aside, temporary, folder = seen

    assert (aside.path, aside.data, aside.target) == (tmp_path / "journal.damaged", b"foreign\n", damaged)
    assert (temporary.data, temporary.target) == (damaged.replace(b"foreign\n", b""), damaged)
    assert (folder.path, folder.target) == (tmp_path, damaged.replace(b"foreign\n", b""))
    assert folder.names == ("journal.damaged", "journal.jsonl")


def test_an_artifact_is_flushed_file_by_file_before_it_appears(tmp_path: Path, flushes: Callable[[Path], list[Flush]]) -> None:
    write_artifact(tmp_path / "artifact.json")
    artifact = read_artifact(tmp_path)
    (tmp_path / "artifact.json").unlink()
    seen = flushes(tmp_path / "artifact" / "model.onnx")
    pack(tmp_path / "artifact", artifact, {"model.onnx": b"the network"})
    *files, inside, outside = seen

    assert {flush.path.name for flush in files} == {"model.onnx", "artifact.json"}
    assert (inside.names, inside.target) == (("artifact.json", "model.onnx"), None)
    assert (outside.path, outside.names, outside.target) == (tmp_path, ("artifact",), b"the network")
