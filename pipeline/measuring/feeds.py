"""Feeds of a file: arrays that the user gives, or random ones, for each of its inputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.feeds import Arrays
from pipeline.core.network_input import UNNAMED_ARRAY, NetworkInput
from pipeline.errors import DataError

__all__ = ["given_feeds", "random_feeds"]

WHOLE_RANGE = ("uint8", "int8")
"""Integers that are pixels or quantised values. Others are often positions, which must be small."""


def random_feeds(inputs: Sequence[NetworkInput], seed: int = 0) -> Arrays:
    """Return random values for each input.

    Floats have mean 0 and standard deviation 1, uint8 and int8 their whole range. Other integers are 0 or 1, because they are
    often positions in a table, and 1 where there is only one value, which is often a size.
    """
    generator = np.random.default_rng(seed)
    return tuple(_random(each, generator) for each in inputs)


def _random(wanted: NetworkInput, generator: np.random.Generator) -> NDArray[Any]:
    kind, shape = np.dtype(wanted.type), wanted.shape
    if kind.kind == "f":
        return generator.standard_normal(shape, dtype=np.float32).astype(kind)
    if kind.kind == "b":
        return np.asarray(generator.integers(2, size=shape), dtype=kind)
    if wanted.type in WHOLE_RANGE:
        limits = np.iinfo(kind)
        return np.asarray(generator.integers(limits.min, limits.max, size=shape, endpoint=True), dtype=kind)
    if np.prod(shape) == 1:
        return np.ones(shape, kind)
    return np.asarray(generator.integers(2, size=shape), dtype=kind)


def given_feeds(inputs: Sequence[NetworkInput], arrays: Mapping[str, NDArray[Any]], path: Path) -> Arrays:
    """Return the arrays that were read from `path`, in the order of `inputs` and in their types.

    A single array that was written without a name belongs to the only input. Raises DataError if an array is missing, or if its
    values would change in the type of the input.
    """
    if len(inputs) == 1 and tuple(arrays) == (UNNAMED_ARRAY,):
        arrays = {inputs[0].name: arrays[UNNAMED_ARRAY]}
    missing = [each.name for each in inputs if each.name not in arrays]
    if missing:
        raise DataError(
            f"{path}: has no array for input '{missing[0]}' (its arrays are {', '.join(arrays) or 'none'}); write it with "
            "numpy.savez(file, NAME=array)"
        )
    return tuple(_converted(each, arrays[each.name], path) for each in inputs)


def _converted(wanted: NetworkInput, array: NDArray[Any], path: Path) -> NDArray[Any]:
    kind = np.dtype(wanted.type)
    if array.dtype == kind:
        return array
    if array.dtype.kind == "f" and kind.kind == "f":
        return array.astype(kind)
    if array.dtype.kind in "biu" and kind.kind in "iu":
        converted = array.astype(kind)
        if (converted == array).all():
            return converted
    raise DataError(
        f"{path}: array '{wanted.name}' is {array.dtype.name}, and the input takes {wanted.type}; convert it: "
        f"array.astype('{wanted.type}')"
    )
