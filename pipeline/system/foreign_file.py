"""Foreign files: the only way to open a file that the program did not just write itself.

Only regular files are opened. A pipe, a device or a folder is refused at once, so no reader waits for a writer that never comes.
No file is read beyond its limit. All errors are OSError with a plain `strerror`, so a reader reports them in the same way as a
missing file:

    try:
        data = read_foreign(path, limit_bytes=64 * 1024)
    except OSError as problem:
        raise ProfileError(f"{path}: cannot be read ({problem.strerror})") from None
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

__all__ = [
    "IMAGE_LIMIT_BYTES",
    "JSON_LIMIT_BYTES",
    "ONNX_LIMIT_BYTES",
    "WEIGHTS_LIMIT_BYTES",
    "UnfitFile",
    "open_foreign",
    "read_foreign",
]

JSON_LIMIT_BYTES = 256 * 2**20
"""Far more than any artifact.json or journal of this program needs."""
IMAGE_LIMIT_BYTES = 512 * 2**20
"""More than any photograph needs."""
ONNX_LIMIT_BYTES = 2**31 - 1
"""Protobuf cannot read a larger file."""
WEIGHTS_LIMIT_BYTES = 16 * 2**30
"""Weights of a vision network are far smaller."""


class UnfitFile(OSError):
    """The file exists but may not be read: it is not a regular file, belongs to another user, or is too large."""

    def __str__(self) -> str:
        return self.strerror or ""


@contextmanager
def open_foreign(path: Path, limit_bytes: int, *, follow: bool = True, own: bool = False) -> Iterator[BufferedReader]:
    """Open the regular file at `path` for reading in binary mode.

    limit_bytes: the largest size that is accepted. follow: whether `path` may be a symbolic link. own: accept only a file of
    this user, and no link to it; this is for caches, whose content is trusted.

    Raises OSError when the file cannot be opened, and UnfitFile when it is not a regular file, is larger than `limit_bytes`, or
    belongs to another user although `own` is set.
    """
    # O_NONBLOCK, because opening a pipe must not wait for its other end
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow and not own else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except ValueError:  # the path contains a NUL
        raise UnfitFile(errno.EINVAL, "not a path") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise UnfitFile(errno.EINVAL, "not a regular file")
        if own and facts.st_uid != os.geteuid():
            raise UnfitFile(errno.EPERM, "it belongs to another user")
        if facts.st_size > limit_bytes:
            raise UnfitFile(errno.EFBIG, f"larger than {_size(limit_bytes)}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_foreign(path: Path, limit_bytes: int, *, own: bool = False) -> bytes:
    """Return the content of the regular file at `path`. Parameters and errors are those of `open_foreign`."""
    with open_foreign(path, limit_bytes, own=own) as file:
        # only the size of the file is read, because a large limit must not allocate a large buffer
        return file.read(os.fstat(file.fileno()).st_size)


def _size(count: int) -> str:
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{round(count / bytes_each)} {unit}"
    return f"{count} bytes"
