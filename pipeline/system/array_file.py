"""Array file: the arrays of a .npy or .npz file, mapped into memory if they are not compressed. Nothing is unpickled."""

import os
import struct
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.foreign_text import clean_text
from pipeline.system.foreign_file import open_foreign
from pipeline.system.npz_file import read_npz

__all__ = ["ARRAY_SUFFIXES", "map_arrays"]

ARRAY_SUFFIXES = (".npy", ".npz")
LIMIT_BYTES = 2**40
"""More than any data set here. Nothing is read before it is needed."""
MOST_ARRAYS = 100
MOST_DIMENSIONS = 32
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Before each file of a zip archive: 'PK\\3\\4', ..., the lengths of its name and of the extra field that follows it."""
ADVICE = "write it with numpy.save(file, array), or numpy.savez(file, NAME=array) for several"
_BROKEN = (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError, KeyError)


class _Unfit(Exception):
    """The file is not accepted. The message says why."""


def map_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays in `path` by name; that of a .npy file is called "". They are read-only, and read as they are used. Only
    those of a compressed file are read at once, with the limits of `read_npz`.

    Raises DataError when the file cannot be read, is cut off, or holds anything other than numbers.
    """
    try:
        with open_foreign(path, LIMIT_BYTES) as file:
            size = os.fstat(file.fileno()).st_size
            if path.name.lower().endswith(".npy"):
                return {"": _mapped(file, 0, size, "the array")}
            return _members(file)
    except _Compressed:
        return _unpacked(path)
    except _Unfit as reason:
        raise DataError(f"{path}: {clean_text(str(reason), 200)}") from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read ({problem.strerror or 'it is damaged'})") from None
    except _BROKEN:
        raise DataError(f"{path}: not a file of arrays; {ADVICE}") from None


class _Compressed(Exception):
    """The arrays cannot be mapped."""


def _unpacked(path: Path) -> dict[str, NDArray[Any]]:
    arrays = read_npz(path)
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf" or not array.size:
            raise DataError(
                f"{path}: array '{clean_text(name, 80)}' holds {array.dtype} {array.shape}; only numbers are accepted"
            )
    return arrays


def _members(file: BufferedReader) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if not 0 < len(members) <= MOST_ARRAYS:
        raise _Unfit(f"has {len(members)} arrays; from 1 to {MOST_ARRAYS} are accepted")
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in found:
            raise _Unfit(f"'{member.filename}' is not an array of its own; {ADVICE}")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _Compressed
        file.seek(member.header_offset)
        magic, name_bytes, extra_bytes = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        if magic != b"PK\3\4":
            raise zipfile.BadZipFile
        start = member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes
        found[name] = _mapped(file, start, start + member.file_size, f"array '{name}'")
    return found


def _mapped(file: BufferedReader, start: int, end: int, what: str) -> NDArray[Any]:
    """The array whose header begins at `start`; it ends before `end`."""
    file.seek(start)
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise _Unfit(f"{what} has version {version[0]}.{version[1]} of the format; {ADVICE}")
    shape, by_columns, kind = readers[version](file)
    if kind.hasobject or kind.names or kind.kind not in "biuf":
        raise _Unfit(f"{what} holds {kind}; only numbers are accepted")
    offset, count = file.tell(), 1
    for length in shape:
        count *= length
    if min(shape, default=1) < 0 or len(shape) > MOST_DIMENSIONS or offset + count * kind.itemsize > end:
        raise _Unfit(f"{what} is cut off, or its shape is wrong")
    if not count or end > os.fstat(file.fileno()).st_size:
        raise _Unfit(f"{what} is empty or cut off (shape {shape})")
    return np.memmap(file, kind, "r", offset, shape, "F" if by_columns else "C")
