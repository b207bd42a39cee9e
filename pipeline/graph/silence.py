"""Silence: the dense graph in which nobody reads the removed channels. It must answer like the graph without them."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.core.plan import Kept
from pipeline.graph.edit import copy_of
from pipeline.graph.labels.space import GraphSpace, Statistic

__all__ = ["silence"]


def silence(model: onnx.ModelProto, labelled: GraphSpace, kept: Kept) -> onnx.ModelProto:
    """Return a copy of `model` of the same width that ignores all channels except the `kept` ones.

    The weights that read a removed channel are zero. A statistic over channels, as in layer normalisation, is taken over the kept
    ones: they are gathered before the node and put back in their places after it.
    """
    silenced = copy_of(model)
    stays = labelled.stays(kept)
    for tensor in silenced.graph.initializer:
        axes = [axis for axis in range(len(tensor.dims)) if (tensor.name, axis) in labelled.reads & labelled.numbers.keys()]
        if axes:
            values = numpy_helper.to_array(tensor).copy()
            for axis in axes:
                gone = np.flatnonzero(~stays[labelled.numbers[tensor.name, axis]])
                values[(slice(None),) * axis + (gone,)] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for statistic in labelled.statistics:
        _over_kept(silenced, statistic, stays, labelled)
    return silenced


def _over_kept(model: onnx.ModelProto, statistic: Statistic, stays: NDArray[np.bool_], labelled: GraphSpace) -> None:
    index = next(number for number, node in enumerate(model.graph.node) if node.name == statistic.node)
    node = model.graph.node[index]
    alive = stays[statistic.channels]
    kept = np.flatnonzero(alive)
    if len(kept) == len(alive):
        return
    before, after = f"{node.name}/kept", f"{node.name}/places"
    places = np.where(alive, np.cumsum(alive) - 1, 0)  # a removed position gets any kept one; nobody reads it
    model.graph.initializer.append(numpy_helper.from_array(kept, before))
    model.graph.initializer.append(numpy_helper.from_array(places, after))
    gathered = f"{node.input[0]}/{before}"
    model.graph.node.insert(index, helper.make_node("Gather", [node.input[0], before], [gathered], axis=statistic.axis))
    node = model.graph.node[index + 1]
    node.input[0] = gathered
    for position, name in enumerate(node.input[1:], start=1):
        for axis in range(3):
            if (name, axis) in labelled.numbers:
                cut = f"{name}/{before}"
                tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
                stayed = np.flatnonzero(stays[labelled.numbers[name, axis]])
                model.graph.initializer.append(
                    numpy_helper.from_array(np.take(numpy_helper.to_array(tensor), stayed, axis=axis), cut)
                )
                node.input[position] = cut
    if not node.op_type.startswith("Reduce"):
        whole = node.output[0]
        node.output[0] = f"{whole}/cut"
        model.graph.node.insert(index + 2, helper.make_node("Gather", [node.output[0], after], [whole], axis=statistic.axis))
    del model.graph.value_info[:]
