"""Silence: the dense graph in which nobody reads the removed channels or blocks. It must answer like the graph without them."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.core.plan import Kept
from pipeline.graph.edit import copy_of
from pipeline.graph.labels.space import GraphSpace, Statistic

__all__ = ["silence", "silence_blocks", "silence_statistics", "unread"]

WITHOUT_CHANNELS = ("MatMul", "Einsum")
"""Operators whose result has no axis of the channels over which they take a statistic. The reductions are others."""


def silence(model: onnx.ModelProto, labelled: GraphSpace, kept: Kept) -> onnx.ModelProto:
    """Return a copy of `model` of the same width that ignores all channels except the `kept` ones, and the dropped blocks.

    The branch of a dropped block is subtracted from itself, so that zeros are added to its entry. The weights that read a removed
    channel are zero. A statistic over channels, as in layer normalisation, is taken over the kept ones: they are gathered before
    the node and put back in their places after it.
    """
    silenced = copy_of(model)
    gone = dict(unread(labelled, kept))
    for tensor in silenced.graph.initializer:
        if tensor.name in gone:
            values = numpy_helper.to_array(tensor).copy()
            for axis, positions in gone[tensor.name].items():
                values[(slice(None),) * axis + (positions,)] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    silence_blocks(silenced, labelled, kept)
    silence_statistics(silenced, labelled, kept)
    return silenced


def unread(labelled: GraphSpace, kept: Kept) -> Iterator[tuple[str, Mapping[int, NDArray[np.int64]]]]:
    """Yield (initializer, {axis: positions}) of the entries of weights that read a channel which is not `kept`."""
    stays = labelled.stays(kept)
    found: dict[str, dict[int, NDArray[np.int64]]] = {}
    for name, axis in sorted(labelled.reads & labelled.numbers.keys()):
        found.setdefault(name, {})[axis] = np.flatnonzero(~stays[labelled.numbers[name, axis]])
    yield from found.items()


def silence_statistics(model: onnx.ModelProto, labelled: GraphSpace, kept: Kept) -> None:
    """Let every statistic over channels in `model` be one over the `kept` channels, in place."""
    stays = labelled.stays(kept)
    for statistic in labelled.statistics:
        _over_kept(model, statistic, stays, labelled)


def silence_blocks(model: onnx.ModelProto, labelled: GraphSpace, kept: Kept) -> None:
    """Let the branch of every dropped block give zeros, in place: it is subtracted from itself."""
    for block in labelled.space.dropped(kept):
        index = next(number for number, node in enumerate(model.graph.node) if node.name == block.node)
        node, place = model.graph.node[index], 1 - block.entry
        branch, zeros = node.input[place], f"{block.node}/zeros"
        node.input[place] = zeros
        model.graph.node.insert(index, helper.make_node("Sub", [branch, branch], [zeros], name=zeros))


def _over_kept(model: onnx.ModelProto, statistic: Statistic, stays: NDArray[np.bool_], labelled: GraphSpace) -> None:
    index = next(number for number, node in enumerate(model.graph.node) if node.name == statistic.node)
    node = model.graph.node[index]
    alive = stays[statistic.channels]
    kept = np.flatnonzero(alive)
    if len(kept) == len(alive):
        return
    before: list[onnx.NodeProto] = []

    def gathered(name: str, axis: int, positions: NDArray[np.int64]) -> str:
        """The name of `name` with only these positions of an axis, for this node."""
        made = f"{name}/{node.name}/{axis}"
        model.graph.initializer.append(numpy_helper.from_array(positions, f"{made}/positions"))
        before.append(helper.make_node("Gather", [name, f"{made}/positions"], [made], axis=axis))
        return made

    node.input[statistic.position] = gathered(node.input[statistic.position], statistic.axis, kept)
    if not node.op_type.startswith("Reduce") and node.op_type not in WITHOUT_CHANNELS:
        for position, name in enumerate(node.input[1:], start=1):  # scale and bias
            for axis in range(3):
                if (name, axis) in labelled.numbers:
                    places = np.flatnonzero(stays[labelled.numbers[name, axis]])
                    node.input[position] = gathered(node.input[position], axis, places)
        whole, node.output[0] = node.output[0], f"{node.output[0]}/{statistic.axis}/cut"
        places = np.where(alive, np.cumsum(alive) - 1, 0)  # a removed position gets any kept one; nobody reads it
        model.graph.initializer.append(numpy_helper.from_array(places, f"{whole}/places"))
        back = helper.make_node("Gather", [node.output[0], f"{whole}/places"], [whole], axis=statistic.axis)
        model.graph.node.insert(index + 1, back)
    for number, each in enumerate(before):
        model.graph.node.insert(index + number, each)
    del model.graph.value_info[:]
