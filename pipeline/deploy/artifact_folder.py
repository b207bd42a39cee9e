"""Artifact folder: the files of an artifact, read through one open descriptor. Links, pipes and odd names are refused."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pipeline.core.artifact import FileFacts
from pipeline.errors import FilesDiffer, Unsigned

__all__ = ["PLAIN_NAME", "OpenFolder", "open_folder"]

PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
"""One component of a path that no shell, terminal or option parser interprets as something else."""


@dataclass(frozen=True)
class OpenFolder:
    """A folder that was opened once. Its files are read through its descriptor, even if its path changes meanwhile."""

    path: Path
    descriptor: int

    def names(self) -> list[str]:
        """Names of everything in the folder, sorted."""
        return sorted(os.listdir(self.descriptor))  # noqa: PTH208 - pathlib lists no descriptors

    def size_bytes(self, name: str) -> int:
        """Size of a file. Raises the errors of `open`."""
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def facts(self, name: str) -> FileFacts:
        """Hash and size of a file, both from one descriptor. Raises the errors of `open`."""
        with self.open(name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileFacts(digest, file.tell())

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The first `limit_bytes` of a file. Raises the errors of `open`."""
        with self.open(name) as file:
            return file.read(limit_bytes)

    @contextmanager
    def open(self, name: str) -> Iterator[BufferedReader]:
        """Open a file for reading.

        Raises FilesDiffer if it does not exist, if its name is not plain, or if it is not a regular file with a single name (hard
        link count 1).
        """
        if not PLAIN_NAME.fullmatch(name):
            allowed = "letters, digits, . _ -"
            raise FilesDiffer(
                f"{self.path}: unexpected file name {name!a}; only {allowed} are allowed: rename or remove the file"
            )
        path = self.path / name
        try:
            # non-blocking: opening a pipe must not wait for its other end
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.descriptor)
        except OSError as problem:
            raise FilesDiffer(f"{path}: cannot be read ({problem.strerror}); replace it by a regular file, not a link") from None
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
                raise FilesDiffer(f"{path}: not a regular file, or one with several hard links; replace it by a plain copy")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                yield file
        finally:
            os.close(descriptor)


@contextmanager
def open_folder(path: Path) -> Iterator[OpenFolder]:
    """Open the folder at `path`. Raises Unsigned if there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as problem:
        raise Unsigned(f"{path}: no artifact in this folder ({getattr(problem, 'strerror', None) or problem})") from None
    try:
        yield OpenFolder(path, descriptor)
    finally:
        os.close(descriptor)
