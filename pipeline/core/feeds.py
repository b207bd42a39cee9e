"""Feeds: the arrays that a network gets for one sample, one array per input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Feeds", "arrays_of", "output_difference", "shapes_text"]

INTEGER_WEIGHT = 0.02
"""With a tolerance of 1e-4, half a percent of integer values may differ."""

Arrays = tuple[NDArray[Any], ...]
"""One array per input, in the order of the network's inputs."""
Feeds = NDArray[Any] | Sequence[NDArray[Any]]
"""The inputs of a network. A network with one input may get the array alone."""


def arrays_of(feeds: Feeds) -> Arrays:
    """Return `feeds` as a tuple with one array per input."""
    return (feeds,) if isinstance(feeds, np.ndarray) else tuple(feeds)


def output_difference(expected: NDArray[Any], found: NDArray[Any], least: float) -> float:
    """Return max |expected - found| / max(|expected|, least), for arrays of one shape. NaN if a value is not a number.

    For integers and booleans, such as the classes of pixels, it is the share of values that differ, times `INTEGER_WEIGHT`:
    rounding may decide a few of them.
    """
    if not expected.size:
        return 0.0
    if expected.dtype.kind in "biu":
        return INTEGER_WEIGHT * float((expected != found).mean())
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), least))


def shapes_text(shapes: Sequence[Sequence[int | str]]) -> str:
    """Return shapes as text for people.

    >>> shapes_text([(1, 3, 32, 32), (1, 5)])
    '1x3x32x32, 1x5'
    """
    return ", ".join("x".join(str(size) for size in shape) or "scalar" for shape in shapes)
