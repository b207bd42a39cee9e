"""Journal file: locked, read, appended to and replaced, so that a kill at any moment loses no whole line."""

import contextlib
import fcntl
import os
from pathlib import Path

from pipeline.core.journal import Damage
from pipeline.errors import RunError, RunLocked
from pipeline.system.files import storage_errors, temporary_beside
from pipeline.system.foreign_file import read_foreign

__all__ = ["JOURNAL_LIMIT_BYTES", "append_whole", "damaged_lines_path", "journal_bytes", "lock_journal", "replace_journal"]

JOURNAL_LIMIT_BYTES = 4 * 2**30
"""Of tens of thousands of trials."""


def lock_journal(path: Path, held: contextlib.ExitStack) -> int:
    """Return a descriptor of the journal, locked until `held` ends."""
    while True:
        with storage_errors(path.parent):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        held.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(
                f"{path.parent}: another process uses this run directory; wait until it has finished, or choose another --out"
            ) from None
        # another process may have replaced the file between the opening and the lock
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor


def journal_bytes(path: Path, limit_bytes: int = JOURNAL_LIMIT_BYTES) -> bytes:
    """Return the bytes of the journal. Raises RunError, also when it is larger than `limit_bytes`."""
    try:
        return read_foreign(path, limit_bytes)
    except OSError as problem:
        raise RunError(f"{path}: cannot be read ({problem.strerror})") from None


def replace_journal(path: Path, whole: bytes, damage: tuple[Damage, ...], held: contextlib.ExitStack) -> int:
    """Move the damaged lines aside and replace the journal by `whole`. Return a descriptor of it, locked like the old one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with storage_errors(path):
        if damage:
            aside = os.open(damaged_lines_path(path), flags, 0o644)
            try:
                append_whole(aside, b"".join(each.data + b"\n" for each in damage), damaged_lines_path(path))
            finally:
                os.close(aside)
        temporary = temporary_beside(path)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # locked before another process can find it
        append_whole(descriptor, whole, path)
        temporary.replace(path)
    return descriptor


def append_whole(descriptor: int, data: bytes, path: Path) -> None:
    """Append `data`. It is on the disk when this returns. If that fails, no part of it remains."""
    with storage_errors(path):
        end = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, end)  # a full disk must not leave half a line for the next run
            raise


def damaged_lines_path(path: Path) -> Path:
    """Return the path of the file for damaged lines."""
    return path.with_name("journal.damaged")
