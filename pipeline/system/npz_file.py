"""Npz file: named arrays in a file that `numpy.savez` wrote, read without pickle and within limits."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.system.foreign_file import open_foreign

__all__ = ["ARRAYS_LIMIT_BYTES", "read_npz"]

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
    except _Unfit as reason:
        raise DataError(f"{path}: {reason}") from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror or 'it is damaged'})") from None
    except _BROKEN:
        raise DataError(f"{path}: not a file of named arrays; {ADVICE}") from None


class _Unfit(Exception):
    """The file is an archive, but not one that is accepted. The message says why."""


def _arrays(archive: zipfile.ZipFile, limit_bytes: int) -> dict[str, NDArray[Any]]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS:
        raise _Unfit(f"has {len(members)} entries; only {MAX_ARRAYS} arrays are accepted")
    if sum(member.file_size for member in members) > limit_bytes:
        raise _Unfit(f"its arrays have more than {limit_bytes // 2**20} MiB together")
    found = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in found:
            raise _Unfit(f"'{member.filename}' is not an array of its own; {ADVICE}")
        # at most the announced number of bytes is read, whatever the compressed data hold
        found[name] = _array(name, archive.read(member))
    return found


def _array(name: str, data: bytes) -> NDArray[Any]:
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise _Unfit(f"array '{name}' has version {version[0]}.{version[1]} of the format; {ADVICE}")
    shape, by_columns, kind = readers[version](stream)
    if kind.hasobject:
        raise _Unfit(f"array '{name}' holds Python objects, which could run code; {ADVICE}")
    rest, count = data[stream.tell() :], 1
    for size in shape:
        count *= size
    # compared before anything is allocated, because a header can announce any size
    if min(shape, default=1) < 0 or len(shape) > MAX_DIMENSIONS or count * kind.itemsize != len(rest):
        raise _Unfit(f"array '{name}' is cut off, or its shape is wrong")
    values = np.frombuffer(rest, kind, count).reshape(shape, order="F" if by_columns else "C")
    return np.asarray(values, kind.newbyteorder("="), order="C")
