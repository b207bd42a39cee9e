"""Npz file: named arrays in a file that `numpy.savez` wrote, read without pickle and within limits."""

import io
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.system.foreign_file import open_foreign

__all__ = ["ARRAYS_LIMIT_BYTES", "Header", "Unfit", "read_header", "read_npz"]

ARRAYS_LIMIT_BYTES = 2**30
"""All arrays together, unpacked. A compressed file can announce a thousand times its own size."""
MAX_ARRAYS = 1000
MAX_DIMENSIONS = 32
ADVICE = "write it with numpy.savez(file, NAME=array), with the names of the inputs"
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError),
    *(OverflowError, RecursionError, MemoryError, KeyError, IndexError, TypeError, SyntaxError),
)
"""What zipfile and numpy raise for a broken or hostile file."""


def read_npz(path: Path, limit_bytes: int = ARRAYS_LIMIT_BYTES) -> dict[str, NDArray[Any]]:
    """Return the arrays in `path` by name. Nothing is unpickled, and nothing is written.

    Raises DataError when the file cannot be read, is no archive of arrays, holds Python objects, or when the arrays have more
    than `limit_bytes` together.
    """
    try:
        with open_foreign(path, limit_bytes) as file, zipfile.ZipFile(file) as archive:
            return _arrays(archive, limit_bytes)
    except Unfit as reason:
        raise DataError(f"{path}: {reason}") from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror or 'it is damaged'})") from None
    except _BROKEN:
        raise DataError(f"{path}: not a file of named arrays; {ADVICE}") from None


class Unfit(Exception):
    """The file is not accepted. The message says why."""


class Header(NamedTuple):
    """What an array's header announces."""

    shape: tuple[int, ...]
    by_columns: bool
    kind: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_header(stream: IO[bytes], what: str) -> Header:
    """Read the header of an array in the format of numpy. Afterwards, `stream` is at its first element.

    Raises Unfit, which calls the array `what`, and the exceptions of numpy for a header that is broken.
    """
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise Unfit(f"{what} has version {version[0]}.{version[1]} of the format; {ADVICE}")
    found = Header(*readers[version](stream))
    if min(found.shape, default=1) < 0 or len(found.shape) > MAX_DIMENSIONS:
        raise Unfit(f"{what} is cut off, or its shape is wrong")
    return found


def _arrays(archive: zipfile.ZipFile, limit_bytes: int) -> dict[str, NDArray[Any]]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS:
        raise Unfit(f"has {len(members)} entries; only {MAX_ARRAYS} arrays are accepted")
    if sum(member.file_size for member in members) > limit_bytes:
        raise Unfit(f"its arrays have more than {limit_bytes // 2**20} MiB together")
    found = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in found:
            raise Unfit(f"'{member.filename}' is not an array of its own; {ADVICE}")
        # at most the announced number of bytes is read, whatever the compressed data hold
        found[name] = _array(name, archive.read(member))
    return found


def _array(name: str, data: bytes) -> NDArray[Any]:
    stream = io.BytesIO(data)
    shape, by_columns, kind = header = read_header(stream, f"array '{name}'")
    if kind.hasobject:
        raise Unfit(f"array '{name}' holds Python objects, which could run code; {ADVICE}")
    rest = data[stream.tell() :]
    # compared before anything is allocated, because a header can announce any size
    if header.size * kind.itemsize != len(rest):
        raise Unfit(f"array '{name}' is cut off, or its shape is wrong")
    values = np.frombuffer(rest, kind, header.size).reshape(shape, order="F" if by_columns else "C")
    return np.asarray(values, kind.newbyteorder("="), order="C")
