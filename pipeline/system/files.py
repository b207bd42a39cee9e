"""Atomic files: a file is written beside its final path, flushed, and then renamed."""

import contextlib
import errno
import glob
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StorageError
from pipeline.system.foreign_file import WEIGHTS_LIMIT_BYTES, open_foreign

__all__ = ["flush_folder", "sha256_bytes", "sha256_file", "storage_errors", "sweep", "temporary_beside", "write_atomically"]

UNUSED_S = 3600.0
"""A temporary file that is older than this is unused, because no file takes longer to write."""


@contextmanager
def storage_errors(path: Path, remedy: str = "choose another --out") -> Iterator[None]:
    """Turn any OSError into a StorageError that says whether the disk is full or the folder cannot be written."""
    try:
        yield
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{path}: no space left on the disk; free some space, then run the same command again") from None
        raise StorageError(f"{path}: cannot be written ({problem.strerror}); {remedy}") from None


def write_atomically(path: Path, data: bytes | str, mode: int = 0o666, remedy: str = "choose another --out") -> None:
    """Write `data` to `path`. After a crash at any moment, the old file or the new one is there, never a part.

    `mode`: permissions of the file from its first byte on, less the umask. `remedy`: what to do where `path` cannot be written.
    Raises StorageError when the disk is full or the folder cannot be written; no temporary file remains then.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = temporary_beside(path)
    with storage_errors(path, remedy):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    sweep(path.parent, path.name, UNUSED_S)


def temporary_beside(path: Path) -> Path:
    """Return a new name beside `path` for a file that is renamed to `path` once it is complete. `sweep` removes such names."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def sweep(folder: Path, name: str = "*", unused_s: float = 0.0) -> None:
    """Remove files and folders in `folder` that `temporary_beside` named and a killed process left.

    name: the final name of the file, or * for any. unused_s: only files that nobody has changed for this long are removed; 0 is
    for folders in which no other process writes. What cannot be removed stays.
    """
    newest = time.time() - unused_s
    pattern = f".{name if name == '*' else glob.escape(name)}.{'[0-9a-f]' * 8}.tmp"
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):
            facts = left.lstat()
            if facts.st_mtime > newest or facts.st_uid != os.geteuid():
                continue
            if stat.S_ISDIR(facts.st_mode):
                shutil.rmtree(left)
            else:
                left.unlink()


def flush_folder(folder: Path) -> None:
    """Flush `folder`, so that renames in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_bytes(data: bytes) -> str:
    """Return the hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex digest of the file at `path`. Raises OSError as `open_foreign` does."""
    with open_foreign(path, WEIGHTS_LIMIT_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
