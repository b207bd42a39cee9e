"""Arrays: inputs of a network in a .npy or .npz file, without labels, as a data set."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.batch import Batch, Inputs
from pipeline.core.feeds import shapes_text
from pipeline.data.images import Splits, normalised
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.unlabelled import FEWEST, split_unlabelled
from pipeline.errors import DataError, EmptyData
from pipeline.system.array_file import ARRAY_SUFFIXES, map_arrays
from pipeline.system.foreign_file import open_foreign
from pipeline.system.strict_yaml import load_yaml

__all__ = ["WantedInput", "is_array_file", "load_arrays"]

COLOURS = (1, 3)
EDGE_BYTES = 2**19
UNKNOWN = -1


@dataclass(frozen=True)
class WantedInput:
    """What a network takes, as far as it is known before the network runs."""

    name: str
    shape: tuple[int, ...] | None = None
    """With one sample. None: unknown."""
    type: str | None = None
    """Such as 'int64'. None: floats become float32, and everything else stays."""
    channels_last: bool = False
    """Whether the file of the network took (N, H, W, C), which is accepted too."""
    raw: bool = False
    """Whether the network takes values from 0 to 255, so that uint8 is not normalised."""


def is_array_file(spec: str) -> bool:
    """Whether `spec`, as in `--data`, is a file of arrays."""
    return spec.lower().endswith(ARRAY_SUFFIXES)


def load_arrays(path: Path, wanted: Sequence[WantedInput], declared: Preprocessing | None, seed: int) -> Splits:
    """Load the arrays in `path` as a data set without labels. The first axis of each is the sample.

    `wanted` are the inputs of the network in order, or nothing if they are unknown. Arrays are matched by name; a single one
    needs none. Floats go to the network as they are. Images in uint8, (N, C, H, W) or (N, H, W, C), are normalised like image
    files, as preprocessing.yaml beside the file or `declared` says. Raises DataError and its subclasses.
    """
    arrays = map_arrays(path)
    own = path.parent / "preprocessing.yaml"
    preprocessing = load_yaml(own, Preprocessing, DataError) if own.exists() else declared or Preprocessing()
    columns = [_column(path, wish, array, preprocessing) for wish, array in _matched(path, arrays, wanted)]
    counts = {name or "the array": len(array) for name, array in arrays.items()}
    count = next(iter(counts.values()))
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{each} in {name}" for name, each in counts.items())
        raise DataError(f"{path}: the arrays have different numbers of samples on their first axis ({found})")
    if count < FEWEST:
        raise EmptyData(f"{path}: {count} samples; give at least {FEWEST}, because some are held out for the test")

    plain = len(columns) == 1 and (columns[0].pixels or columns[0].type.startswith("float"))

    def fetch(indices: Tensor) -> Inputs:
        tensors = [column.tensor(indices.numpy()) for column in columns]
        if plain:
            return tensors[0]  # pixels are normalised after they were augmented
        ready = (
            normalised(each, preprocessing) if column.pixels else each for column, each in zip(columns, tensors, strict=True)
        )
        return Batch(tuple(ready))

    if columns[0].pixels and len(columns) == 1:
        side = columns[0].sides
        preprocessing = preprocessing.model_copy(update={"size": side[0], "width": side[1] if side[1] != side[0] else None})
    shapes = shapes_text([array.shape[1:] for array in arrays.values()])
    text = f"{path.name}: {count} samples without labels, {shapes}, {_digest(path)}"
    labels = torch.full((count,), UNKNOWN)
    splits = Splits.of(fetch, labels, split_unlabelled(count, seed), preprocessing, (), text)
    return replace(splits, input_names=() if plain else tuple(name for name in arrays if name))


@dataclass(frozen=True)
class _Column:
    """One input of the network, and the array that it comes from."""

    array: NDArray[Any]
    type: str
    pixels: bool
    """Whether it is an image in uint8 that is normalised."""
    to_channels_first: bool

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.array.shape[1:3] if self.to_channels_first else self.array.shape[2:4]
        return int(height), int(width)

    def tensor(self, indices: NDArray[np.int64]) -> Tensor:
        """The samples at `indices`."""
        values = np.ascontiguousarray(self.array[indices])
        if self.to_channels_first:
            values = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
        return torch.from_numpy(values.astype(self.type, copy=False))


def _matched(
    path: Path, arrays: Mapping[str, NDArray[Any]], wanted: Sequence[WantedInput]
) -> list[tuple[WantedInput, NDArray[Any]]]:
    """The inputs of the network in order, each with its array."""
    if not wanted:
        return [(WantedInput(name), array) for name, array in arrays.items()]
    if len(wanted) == len(arrays) == 1:
        return [(wanted[0], next(iter(arrays.values())))]
    names = [wish.name for wish in wanted]
    if set(names) != set(arrays):
        got = ", ".join(name or "one array without a name" for name in arrays)
        raise DataError(
            f"{path}: the network takes {', '.join(names)}, got {got}; write it with numpy.savez(file, {names[0]}=...)"
        )
    return [(wish, arrays[wish.name]) for wish in wanted]


def _column(path: Path, wish: WantedInput, array: NDArray[Any], preprocessing: Preprocessing) -> _Column:
    what = f"{path}: {f'array {wish.name!r}' if wish.name else 'the array'}"
    if not array.ndim:
        raise DataError(f"{what} is a single value; its first axis must be the sample")
    kind = wish.type or ("float32" if array.dtype.kind == "f" else array.dtype.newbyteorder("=").name)
    image = array.dtype == np.uint8 and array.ndim == 4
    turned = image or wish.channels_last
    turned = turned and array.ndim == 4 and array.shape[3] in COLOURS and (array.shape[1] not in COLOURS or wish.channels_last)
    shape = (array.shape[3], *array.shape[1:3]) if turned else array.shape[1:]
    if wish.shape is not None and shape != wish.shape[1:]:
        got, needed = shapes_text([("N", *array.shape[1:])]), shapes_text([("N", *wish.shape[1:])])
        raise DataError(f"{what} is {got}; the network takes {needed}")
    pixels = image and not wish.raw and kind in ("float32", "uint8")
    if pixels and preprocessing.mean is None:
        raise DataError(
            f"{what} is uint8, and the normalisation of pixels is not declared; write floats that are ready for the network, or "
            "declare mean and std in preprocessing.yaml beside the file"
        )
    if wish.type and not pixels and not _fits(array.dtype, wish):
        raise DataError(f"{what} is {array.dtype.name}; the network takes {wish.type}, so write it with .astype('{wish.type}')")
    return _Column(array, "uint8" if pixels else kind, pixels, bool(turned))


def _fits(found: np.dtype[Any], wish: WantedInput) -> bool:
    """Whether no value changes, or only floats are rounded."""
    wanted = np.dtype(wish.type)
    return bool(
        np.can_cast(found, wanted, "safe") or (found.kind == "f" and wanted.kind == "f") or (wish.raw and found == np.uint8)
    )


def _digest(path: Path) -> str:
    """Hash of the size, the beginning and the end of a file."""
    with open_foreign(path, 2**40) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"{size}\0".encode() + file.read(EDGE_BYTES))
        file.seek(max(size - EDGE_BYTES, min(size, EDGE_BYTES)))
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()[:16]
