"""Bounded child: run a module of this package on the bytes of an untrusted ONNX file, with limited memory and time."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.system.foreign_file import ONNX_LIMIT_BYTES, read_foreign

__all__ = ["Limits", "bytes_of", "limit_memory", "refusing", "run_bounded"]


@dataclass(frozen=True)
class Limits:
    """Address space: `base_bytes`, and `per_byte` for each byte of the file. A few bytes of protobuf can request a thousand times
    their own size.
    """

    base_bytes: int
    per_byte: int
    time_s: float

    def memory_bytes(self, size: int) -> int:
        """The limit for a file of `size` bytes."""
        return self.base_bytes + self.per_byte * size


def bytes_of(path: Path, what: str) -> bytes:
    """Return the content of `path`. Raises ModelError, which calls it not `what`, if it cannot be read or is too large."""
    try:
        return read_foreign(path, ONNX_LIMIT_BYTES)
    except OSError as problem:
        if problem.errno == errno.EFBIG:
            raise ModelError(f"{path}: {what} ({problem.strerror})") from None
        raise ModelError(f"{path}: cannot be read ({problem.strerror})") from None


@contextlib.contextmanager
def refusing(path: Path, what: str, size: int, limits: Limits) -> Iterator[None]:
    """Around `run_bounded` and the reading of its answer: raise ModelError, which calls `path` not `what`, for a child that took
    too much time or memory. A child without memory gives no answer, which its reader reports as ValueError.
    """
    try:
        yield
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path}: {what} (no end of it after {limits.time_s:.0f} s)") from None
    except ValueError:
        raise ModelError(f"{path}: {what} (reading it takes more than {limits.memory_bytes(size) // 2**20} MiB)") from None


def run_bounded(module: str, arguments: Sequence[str], data: bytes, limits: Limits) -> bytes:
    """Run `python -m MODULE LIMIT ARGUMENTS...` with `data` on its standard input, and return what it prints.

    The module calls `limit_memory` with its first argument. The result may be anything, also nothing if it was killed. Raises
    subprocess.TimeoutExpired.
    """
    # one thread: every further thread of a numerical library uses up address space
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": _search_path()}
    return subprocess.run(
        [sys.executable, "-m", module, str(limits.memory_bytes(len(data))), *arguments],
        input=data,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=limits.time_s,
        check=False,
        env=environment,
    ).stdout


def limit_memory(limit_bytes: int) -> None:
    """Limit the address space of this process."""
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))


def _search_path() -> str:
    """PYTHONPATH with the folder of this package, which may not be installed."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
