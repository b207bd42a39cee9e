"""Given file: an ONNX file from anywhere, ready to be measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.core.feeds import Arrays
from pipeline.core.network_input import NetworkInput
from pipeline.graph.given.door import Shapes
from pipeline.graph.intake import read_network
from pipeline.measuring.feeds import given_feeds, random_feeds
from pipeline.probe.interface import Graph

__all__ = ["GivenFile", "read_file"]


@dataclass(frozen=True, eq=False)
class GivenFile:
    """A file with values for its inputs."""

    path: Path
    graph: Graph
    inputs: tuple[NetworkInput, ...]
    feeds: Arrays
    """One array per input."""

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.graph.data)


def read_file(path: Path, shapes: Shapes, arrays: Mapping[str, NDArray[Any]] | None, arrays_path: Path | None) -> GivenFile:
    """Read the ONNX file `path`. It is not run.

    `shapes`: sizes of inputs by name, for free dimensions. `arrays`: values of the inputs by name, which came from `arrays_path`;
    without them, values are random. Raises ModelError and DataError.
    """
    if arrays is None or arrays_path is None:
        network = read_network(path, shapes)
        feeds = random_feeds(network.inputs)
    else:
        network = read_network(path, {name: array.shape for name, array in arrays.items()}, str(arrays_path))
        feeds = given_feeds(network.inputs, arrays, arrays_path)
    return GivenFile(path, Graph(network.data, network.structure), network.inputs, feeds)
