"""Array file: the arrays of a .npy or .npz file, mapped into memory if they are not compressed. Nothing is unpickled."""

import os
import struct
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.foreign_text import clean_text
from pipeline.system.foreign_file import open_foreign
from pipeline.system.npz_file import Unfit, read_header, read_npz

__all__ = ["ARRAY_SUFFIXES", "map_arrays"]

ARRAY_SUFFIXES = (".npy", ".npz")
LIMIT_BYTES = 2**40
"""More than any data set here. Nothing is read before it is needed."""
MOST_ARRAYS = 100
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Before each file of a zip archive: 'PK\\3\\4', ..., the lengths of its name and of the extra field that follows it."""
ADVICE = "write it with numpy.save(file, array), or numpy.savez(file, NAME=array) for several"
_BROKEN = (zipfile.BadZipFile, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError, KeyError)


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
    except Unfit as reason:
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
        raise Unfit(f"has {len(members)} arrays; from 1 to {MOST_ARRAYS} are accepted")
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename or name in found:
            raise Unfit(f"'{member.filename}' is not an array of its own; {ADVICE}")
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
    header = read_header(file, what)
    shape, by_columns, kind = header
    if kind.hasobject or kind.names or kind.kind not in "biuf":
        raise Unfit(f"{what} holds {kind}; only numbers are accepted")
    offset = file.tell()
    if offset + header.size * kind.itemsize > end:
        raise Unfit(f"{what} is cut off, or its shape is wrong")
    if not header.size or end > os.fstat(file.fileno()).st_size:
        raise Unfit(f"{what} is empty or cut off (shape {shape})")
    return np.memmap(file, kind, "r", offset, shape, "F" if by_columns else "C")
