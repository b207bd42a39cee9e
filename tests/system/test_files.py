"""Files are whole or absent, whatever happens while they are written."""

import hashlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.system.files import flush_folder, sha256_bytes, sha256_file, write_atomically

MIB = 2**20

# Writes a file of one letter, then of the next, for ever; says so before each.
WRITER = """
import sys, itertools
from pathlib import Path
from pipeline.system.files import write_atomically
for letter in itertools.cycle("abcdefgh"):
    write_atomically(Path(sys.argv[1]), letter * int(sys.argv[2]))
    sys.stdout.write(letter)
    sys.stdout.flush()
"""

# Runs what follows with files limited to 64 KiB, as a full disk would limit them.
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
"""


def run(program: str, *arguments: object, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    command = [*before, sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def test_what_is_written_is_there(tmp_path: Path) -> None:
    write_atomically(tmp_path / "text", "Grüße\n")
    write_atomically(tmp_path / "bytes", b"\x00\xff")
    write_atomically(tmp_path / "bytes", b"\x01")

    assert (tmp_path / "text").read_bytes() == "Grüße\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x01"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "text"]


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one_and_never_a_part(tmp_path: Path) -> None:
    """SIGKILL, 12 times, at moments drawn by chance: the file holds one letter, as often as it should"""
    path, letters = tmp_path / "file", set()
    moments = random.Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(MIB)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(1)
        time.sleep(moments.random() / 50)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = path.read_bytes()
        letters.add(found[:1])
        assert found == found[:1] * MIB

    assert len(letters) > 1


def on_a_disk(options: str, folder: Path) -> tuple[str, ...]:
    """What to put before a command so that it alone sees a disk of its own at `folder`."""
    folder.mkdir()
    before = ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o {options} none {folder} && exec "$@"', "sh")
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a process mount a disk of its own")
    return before


def test_a_full_disk_is_named_and_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """a disk of 64 KiB, and a file of 3 MiB"""
    disk = tmp_path / "disk"
    program = """
import os, sys
from pathlib import Path
from pipeline.system.files import write_atomically
path = Path(sys.argv[1])
write_atomically(path, "old")
try:
    write_atomically(path, "new" * 2**20)
except Exception as problem:
    print(type(problem).__name__, problem)
print(path.read_text(), os.listdir(path.parent))
"""
    done = run(program, disk / "file", before=on_a_disk("size=64k", disk))

    assert done.stdout.splitlines() == [
        f"StorageError {disk}/file: no space left on the disk; free some space, then run the same command again",
        "old ['file']",
    ]


def test_a_disk_that_may_only_be_read_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = run(WRITER, disk / "file", 1, before=on_a_disk("ro", disk))

    assert done.stderr.splitlines()[-1] == (
        f"pipeline.errors.StorageError: {disk}/file: cannot be written (Read-only file system); choose another --out"
    )


def test_a_limit_on_the_size_of_files_is_a_storage_error_too(tmp_path: Path) -> None:
    program = f"{LIMITED}\nimport sys\nfrom pathlib import Path\nfrom pipeline.system.files import write_atomically\n"
    done = run(program + "write_atomically(Path(sys.argv[1]), 'x' * 2**20)", tmp_path / "file")

    assert done.stderr.splitlines()[-1] == (
        f"pipeline.errors.StorageError: {tmp_path}/file: cannot be written (File too large); choose another --out"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file/below", "Not a directory"), ("missing/below", "No such file or directory"), ("folder", "Is a directory")],
)
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    path = tmp_path / place

    with pytest.raises(StorageError) as refused:
        write_atomically(path, "x")
    assert str(refused.value) == f"{path}: cannot be written ({reason}); choose another --out"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "folder"]


def test_digests_are_sha256(tmp_path: Path) -> None:
    data = b"abc" * 100_000
    (tmp_path / "file").write_bytes(data)

    assert sha256_bytes(data) == sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_a_folder_is_flushed_without_leaving_it_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        flush_folder(tmp_path)

    assert len(list(Path("/proc/self/fd").iterdir())) == before
