"""Foreign files: only regular ones are opened, without waiting, and none is read beyond its limit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.places import DIGITS, DRY, Place, message
from helpers.readers import READERS
from PIL import Image

from pipeline import errors
from pipeline.errors import CompressError
from pipeline.probe import worker
from pipeline.system.foreign_file import UnfitFile, open_foreign, read_foreign


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_a_regular_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 1000)

    assert read_foreign(tmp_path / "file", 3000) == b"abc" * 1000
    (tmp_path / "link").symlink_to("file")
    assert read_foreign(tmp_path / "link", 3000) == b"abc" * 1000


@pytest.mark.parametrize("own", [False, True])
def test_a_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path: Path, own: bool) -> None:
    for path in (pipe(tmp_path / "pipe"), tmp_path, Path("/dev/zero")):
        with pytest.raises(UnfitFile) as refused, open_foreign(path, 10, own=own):
            pass
        assert refused.value.strerror == str(refused.value) == "not a regular file"


def test_a_link_to_a_pipe_is_refused_too(tmp_path: Path) -> None:
    pipe(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")

    with pytest.raises(UnfitFile, match="not a regular file"):
        read_foreign(tmp_path / "link", 10)


@pytest.mark.parametrize(
    ("limit_bytes", "said"),
    [(1023, "larger than 1023 bytes"), (64 * 1024, "larger than 64 KiB"), (2**31 - 1, "larger than 2 GiB")],
)
def test_a_file_beyond_its_limit_is_refused_and_not_read(tmp_path: Path, limit_bytes: int, said: str) -> None:
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", limit_bytes)
    with open_foreign(tmp_path / "sparse", limit_bytes):
        pass
    os.truncate(tmp_path / "sparse", limit_bytes + 1)

    with pytest.raises(UnfitFile, match=said):
        read_foreign(tmp_path / "sparse", limit_bytes)


def test_a_link_in_the_place_of_an_own_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")

    assert read_foreign(tmp_path / "file", 1, own=True) == b"x"
    for strict in ({"own": True}, {"follow": False}):
        with pytest.raises(OSError, match="Too many levels of symbolic links"), open_foreign(tmp_path / "link", 1, **strict):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_not_an_own_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.chown(tmp_path / "file", 12345, -1)

    assert read_foreign(tmp_path / "file", 1) == b"x"
    with pytest.raises(UnfitFile, match="it belongs to another user"):
        read_foreign(tmp_path / "file", 1, own=True)


def test_a_path_that_is_none_is_refused_as_a_missing_file_is() -> None:
    with pytest.raises(UnfitFile, match="not a path"):
        read_foreign(Path("a\0b"), 1)


@pytest.mark.parametrize(
    "name", [name for name, reader in READERS.items() if name not in ("answers", "network", "signed manifest")]
)
def test_every_reader_refuses_a_pipe_in_the_place_of_its_file(tmp_path: Path, name: str) -> None:
    """without the check this test hangs; the three that are left out do not open the file themselves"""
    reader = READERS[name]
    reader.valid(tmp_path)
    pipe(tmp_path / reader.name)

    with pytest.raises(reader.error):
        reader.read(tmp_path / reader.name)


COMMANDS: dict[str, tuple[type[CompressError], Callable[[Place], tuple[str, ...]], str]] = {
    "an image": (
        errors.CorruptImage,
        lambda place: place.images(lambda root: pipe(root / "train" / "cat" / "000.png")),
        "not a readable image (not a regular file)",
    ),
    "an image of a data set whose size is declared": (
        errors.CorruptImage,
        lambda place: (*place.net()[:-1], str(pipe(place.folder / "images" / "test" / "dog" / "x.jpg").parents[2])),
        "not a readable image (not a regular file)",
    ),
    "preprocessing.yaml": (
        errors.DataError,
        lambda place: place.images(lambda root: pipe(root / "preprocessing.yaml")),
        "preprocessing.yaml: cannot be read (not a regular file)",
    ),
    "weights, .safetensors": (
        errors.WeightsError,
        lambda place: (*DIGITS, "--weights", str(pipe(place.folder / "net.safetensors"))),
        "not a readable safetensors file (not a regular file)",
    ),
    "weights, .pt": (
        errors.WeightsError,
        lambda place: (*DIGITS, "--weights", str(pipe(place.folder / "net.pt"))),
        "not a readable checkpoint (not a regular file)",
    ),
    "a factory's file": (
        errors.ModelError,
        lambda place: (*DIGITS, "--model", f"{pipe(place.folder / 'net.py')}:net"),
        "net.py: no such file; give file.py:factory",
    ),
    "the profile": (
        errors.ProfileError,
        lambda place: ("--target", str(pipe(place.folder / "board.yaml")), *DRY),
        "unknown profile '",
    ),
    "the journal": (
        errors.RunError,
        lambda place: (*DIGITS, "--out", str(pipe(place.out / "journal.jsonl").parent)) if place.out.mkdir() is None else (),
        "journal.jsonl: cannot be read (not a regular file)",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_no_command_waits_for_a_pipe(place: Place, case: str) -> None:
    error, arguments, said = COMMANDS[case]

    assert said in message(arguments(place), error)


def test_an_image_that_is_a_regular_file_decodes_as_before(tmp_path: Path) -> None:
    """also one that is read lazily, strip by strip, while its file is open: a compressed TIFF"""
    from pipeline.data.decode import Decoder
    from pipeline.data.preprocessing import Preprocessing

    pixels = torch.arange(3 * 64, dtype=torch.uint8).reshape(8, 8, 3).numpy()
    Image.fromarray(pixels).save(tmp_path / "x.tiff", compression="tiff_lzw")

    assert Decoder(8, 3, Preprocessing()).file(tmp_path / "x.tiff").permute(1, 2, 0).numpy().tolist() == pixels.tolist()


WORKING_FOLDER = """
import os, sys, tempfile
from pipeline.probe import worker
tempfile.tempdir = sys.argv[1]
folder, held = worker.working_folder()
print(sorted(set(os.listdir(sys.argv[1])) - {os.path.basename(folder)}))
"""


def left_behind(temporary: Path, name: str) -> Path:
    """A working folder whose worker was killed two minutes ago."""
    folder = temporary / f"compress-probe-{name}"
    folder.mkdir()
    (folder / "held").touch()
    return folder


def aged(folder: Path) -> None:
    os.utime(folder, (0, 0))


def new_working_folder(temporary: Path) -> str:
    done = subprocess.run([sys.executable, "-c", WORKING_FOLDER, str(temporary)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_worker_does_not_wait_for_a_pipe_in_a_folder_that_is_called_like_its_own(tmp_path: Path) -> None:
    """`held` is a pipe in one and a link to a file elsewhere in another; only the third is a worker's"""
    pipe(left_behind(tmp_path, "pipe") / "held")
    (left_behind(tmp_path, "link") / "held").unlink()
    (tmp_path / "elsewhere").touch()
    (tmp_path / "compress-probe-link" / "held").symlink_to(tmp_path / "elsewhere")
    left_behind(tmp_path, "ours")
    for folder in tmp_path.glob("compress-probe-*"):
        aged(folder)

    assert new_working_folder(tmp_path) == "['compress-probe-link', 'compress-probe-pipe', 'elsewhere']"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_worker_leaves_the_folders_of_another_user_alone(tmp_path: Path) -> None:
    theirs = left_behind(tmp_path, "theirs")
    os.chown(theirs, 12345, -1)
    aged(theirs)

    assert new_working_folder(tmp_path) == "['compress-probe-theirs']"


def test_a_worker_does_not_take_a_pipe_for_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "compress-probe").mkdir()
    pipe(tmp_path / "compress-probe" / "lock")

    assert worker.claim("a client") is None


def test_a_safetensors_file_of_one_tensor_is_read_as_it_was_written(tmp_path: Path) -> None:
    from pipeline.training.checkpoints import read_checkpoint

    safetensors.torch.save_file({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "net.safetensors")

    assert torch.equal(read_checkpoint(tmp_path / "net.safetensors")[""]["w"], torch.arange(6.0).reshape(2, 3))
