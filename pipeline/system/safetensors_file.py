"""Safetensors files, read with checks that the library does not make."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from torch import Tensor

from pipeline.system.foreign_file import WEIGHTS_LIMIT_BYTES, read_foreign

__all__ = ["check_header", "read_tensors"]

LENGTH_BYTES = 8
DTYPES = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"})
"""Types that weights can have. A complex type would lose its imaginary part in a network of real numbers."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors in the safetensors file `path`, by name.

    Raises OSError when it cannot be read; ValueError when its header names a tensor twice or has a type that no weights have;
    safetensors.SafetensorError when it is not a safetensors file.
    """
    data = read_foreign(path, WEIGHTS_LIMIT_BYTES)
    check_header(data)
    return safetensors.torch.load(data)


def check_header(data: bytes) -> None:
    """Check the header more strictly than the library does. Raises ValueError for a duplicate name, an unfit type or NaN."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    if len(data) < LENGTH_BYTES + length:
        return  # the library reports what is wrong
    try:
        header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length], object_pairs_hook=_once, parse_constant=_no_number)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return
    for name, entry in header.items() if isinstance(header, dict) else ():
        dtype = entry.get("dtype") if isinstance(entry, Mapping) else None
        if name != "__metadata__" and isinstance(dtype, str) and dtype not in DTYPES:
            raise ValueError(f"'{name[:100]}' is of type {dtype[:20]}, which is not a type of weights; save it as float32")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"its header names '{twice[:100]}' twice; save it again")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"its header holds {text}")
