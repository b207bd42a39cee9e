"""Slice: make the ONNX graph of the kept channels and blocks from the dense graph in milliseconds, with numpy and onnx only."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.core.plan import Kept
from pipeline.core.weight_slices import BaseWeights, Cuts, Tensor, WeightSlices
from pipeline.graph.drop_blocks import drop_blocks
from pipeline.graph.edit import copy_of, outline_of, uses_of
from pipeline.graph.labels.follow import Follower
from pipeline.graph.labels.space import GraphSpace
from pipeline.graph.metadata import opset_of
from pipeline.graph.weight_file import assembled

__all__ = ["SliceableGraph", "Weight", "prepare"]

INPUTS = {
    "Reshape": {"shape": 1},
    "Expand": {"shape": 1},
    "Split": {"split": 1},
    "Slice": {"starts": 1, "ends": 2},
    "Gather": {"indices": 1},
    "Pad": {"pads": 1},
    "Resize": {"sizes": 3},
}
"""Op type -> position of the inputs that follow a plan. What is not listed is an attribute."""


@dataclass(frozen=True)
class Weight:
    """One initializer: its values in the dense graph, and the channel numbers along each axis that is cut."""

    name: str
    values: NDArray[np.generic]
    cuts: tuple[tuple[int, NDArray[np.int64]], ...]


@dataclass(frozen=True)
class _Place:
    """Where constants that follow a plan are written: the value of a Constant node, or an attribute of the node itself."""

    node: int
    attribute: str
    follower: Follower


@dataclass(frozen=True)
class SliceableGraph:
    """The dense graph in two parts: a skeleton without weights, and the weights with their cuts.

    All candidates share it, and `slice` does not change it.
    """

    labelled: GraphSpace
    skeleton: onnx.ModelProto
    weights: tuple[Weight, ...]
    places: tuple[_Place, ...]

    @cached_property
    def base(self) -> BaseWeights:
        """The dense weights, from which all weight slices are cut."""
        return BaseWeights(tuple(Tensor(w.name, helper.np_dtype_to_tensor_dtype(w.values.dtype), w.values) for w in self.weights))

    def with_weights(self, values: Mapping[str, NDArray[np.generic]]) -> "SliceableGraph":
        """Return the same graph with other values of the weights that `values` names."""
        changed = (replace(weight, values=values.get(weight.name, weight.values)) for weight in self.weights)
        return replace(self, weights=tuple(changed))

    def weight_slices(self, kept: Kept) -> WeightSlices:
        """Return the weight slices of the graph in which every group has only its `kept` channels, without the dropped blocks."""
        stays = self.labelled.stays(kept)
        model = copy_of(self.skeleton)
        for place in self.places:
            _write(model.graph.node[place.node], place.attribute, place.follower.values(stays))
        dropped = self.labelled.space.dropped(kept)
        used: Container[str] | None = None
        if dropped:
            drop_blocks(model.graph, dropped)
            used = uses_of(model.graph)
        known: dict[int, NDArray[np.int64]] = {}
        cuts: list[Cuts | None] = []
        for weight in self.weights:
            if used is not None and weight.name not in used:
                cuts.append(None)
                continue
            found = []
            for axis, numbers in weight.cuts:
                index = known.get(id(numbers))
                if index is None:
                    index = known[id(numbers)] = np.flatnonzero(stays[numbers])
                if len(index) < weight.values.shape[axis]:
                    found.append((axis, index))
            cuts.append(tuple(found))
        graph = model.graph.SerializeToString(deterministic=True)
        model.ClearField("graph")
        return WeightSlices(self.base, model.SerializeToString(deterministic=True), graph, tuple(cuts))

    def slice(self, kept: Kept) -> onnx.ModelProto:
        """Return the graph in which every group has only its `kept` channels, without the dropped blocks."""
        return assembled(self.weight_slices(kept))


def prepare(model: onnx.ModelProto, labelled: GraphSpace) -> SliceableGraph:
    """Divide `model` into skeleton and weights. `labelled` is what `label_graph` found for it."""
    skeleton = outline_of(model, {tensor.name for tensor in model.graph.initializer})
    del skeleton.graph.initializer[:], skeleton.graph.value_info[:]
    opset = opset_of(model)
    nodes = {node.name: node for node in skeleton.graph.node}
    constants: list[onnx.NodeProto] = []
    everything = labelled.stays({group.name: tuple(range(group.channels)) for group in labelled.space.groups})
    written: list[tuple[str, str, Follower]] = []
    for follower in labelled.followers:
        node = nodes[follower.node]
        position = INPUTS.get(node.op_type, {}).get(follower.key)
        if follower.key == "split" and len(node.input) < 2:
            _give_sizes(node, follower.values(everything), opset)
        if position is None or any(entry.name == follower.key for entry in node.attribute):
            written.append((node.name, follower.key, follower))
            continue
        name = f"{node.name}/{follower.key}"
        constants.append(helper.make_node("Constant", [], [name], name=name, value=_integers(follower.values(everything))))
        node.input[position] = name
        written.append((name, "value", follower))
    used = {name for node in skeleton.graph.node for name in node.input} | {value.name for value in skeleton.graph.output}
    weights = tuple(
        Weight(tensor.name, numpy_helper.to_array(tensor), _cuts(labelled, tensor.name, len(tensor.dims)))
        for tensor in model.graph.initializer
        if tensor.name in used
    )
    rest = list(skeleton.graph.node)
    del skeleton.graph.node[:]
    skeleton.graph.node.extend([*constants, *rest])
    index = {node.name: number for number, node in enumerate(skeleton.graph.node)}
    places = tuple(_Place(index[name], attribute, follower) for name, attribute, follower in written)
    return SliceableGraph(labelled, skeleton, weights, places)


def _cuts(labelled: GraphSpace, name: str, axes: int) -> tuple[tuple[int, NDArray[np.int64]], ...]:
    return tuple((axis, labelled.numbers[name, axis]) for axis in range(axes) if (name, axis) in labelled.numbers)


def _give_sizes(node: onnx.NodeProto, sizes: NDArray[np.int64], opset: int) -> None:
    """Say the sizes of a Split that halves its input or that gives a number of outputs. They are an attribute before opset 13."""
    for entry in [entry for entry in node.attribute if entry.name in ("num_outputs", "split")]:
        node.attribute.remove(entry)
    if opset < 13:
        node.attribute.append(helper.make_attribute("split", sizes.tolist()))
    else:
        node.input.append("")


def _write(node: onnx.NodeProto, attribute: str, values: NDArray[np.int64]) -> None:
    entry = next(entry for entry in node.attribute if entry.name == attribute)
    if entry.type == onnx.AttributeProto.TENSOR:
        entry.t.CopyFrom(_integers(values))
    elif entry.type == onnx.AttributeProto.INT:
        entry.i = int(values[0])
    else:
        del entry.ints[:]
        entry.ints.extend(values.tolist())


def _integers(values: NDArray[np.int64]) -> onnx.TensorProto:
    return numpy_helper.from_array(values)
