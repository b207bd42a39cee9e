"""Feeds: the arrays that a network gets for one sample, one array per input."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrays", "Feeds", "arrays_of", "shapes_text"]

Arrays = tuple[NDArray[Any], ...]
"""One array per input, in the order of the network's inputs."""
Feeds = NDArray[Any] | Sequence[NDArray[Any]]
"""The inputs of a network. A network with one input may get the array alone."""


def arrays_of(feeds: Feeds) -> Arrays:
    """Return `feeds` as a tuple with one array per input."""
    return (feeds,) if isinstance(feeds, np.ndarray) else tuple(feeds)


def shapes_text(shapes: Sequence[Sequence[int]]) -> str:
    """Return shapes as text for people.

    >>> shapes_text([(1, 3, 32, 32), (1, 5)])
    '1x3x32x32, 1x5'
    """
    return ", ".join("x".join(str(size) for size in shape) or "scalar" for shape in shapes)
