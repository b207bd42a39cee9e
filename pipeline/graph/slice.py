"""Slice: make the ONNX graph of the kept channels from the dense graph in milliseconds, with numpy and onnx only."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.core.plan import Kept, PruneSpace
from pipeline.core.weight_slices import BaseWeights, Tensor, WeightSlices
from pipeline.graph.metadata import scope_of, stripped
from pipeline.graph.weight_file import assembled

__all__ = ["SliceableGraph", "prepare"]

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name in the torch state dict -> shape."""

Cut = tuple[int, str, int]
"""(axis of the initializer, torch tensor, axis of that tensor). Both axes lose the same entries."""

_ROLES = {
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "PRelu": ("", "weight"),
}
"""Operator -> torch names of its inputs, for operators whose ONNX input names do not contain them."""


@dataclass(frozen=True)
class _Weight:
    """One initializer of the sliced graph: its values in the dense graph and the axes that are cut."""

    name: str
    values: NDArray[np.generic]
    cuts: tuple[Cut, ...]


@dataclass(frozen=True)
class SliceableGraph:
    """The exported dense graph in two parts: a skeleton without weights, and the weights with their cuts.

    All candidates share it, and `slice` does not change it.
    """

    space: PruneSpace
    skeleton: onnx.ModelProto
    weights: tuple[_Weight, ...]
    depthwise: tuple[tuple[int, str], ...]
    """(node index, torch weight) of each depthwise convolution. Its `group` attribute must equal its width."""

    @cached_property
    def base(self) -> BaseWeights:
        """The dense weights, from which all weight slices are cut."""
        return BaseWeights(tuple(Tensor(w.name, helper.np_dtype_to_tensor_dtype(w.values.dtype), w.values) for w in self.weights))

    def weight_slices(self, kept: Kept) -> WeightSlices:
        """Return the weight slices of the graph in which every group has only its `kept` channels."""
        remaining: dict[tuple[str, int, int], NDArray[np.int64]] = {}

        def stays(tensor: str, axis: int, size: int) -> NDArray[np.int64]:
            key = (tensor, axis, size)
            if key not in remaining:
                remaining[key] = self.space.remaining(tensor, axis, size, kept)
            return remaining[key]

        cuts = []
        for weight in self.weights:
            found = ((axis, stays(tensor, its_axis, weight.values.shape[axis])) for axis, tensor, its_axis in weight.cuts)
            cuts.append(tuple((axis, index) for axis, index in found if len(index) < weight.values.shape[axis]))
        model = onnx.ModelProto()
        model.CopyFrom(self.skeleton)
        sizes = {cut[1]: weight.values.shape[0] for weight in self.weights for cut in weight.cuts if cut[0] == 0 == cut[2]}
        for node_index, tensor in self.depthwise:
            attribute = next(a for a in model.graph.node[node_index].attribute if a.name == "group")
            attribute.i = len(stays(tensor, 0, sizes[tensor]))
        graph = model.graph.SerializeToString(deterministic=True)
        model.ClearField("graph")
        return WeightSlices(self.base, model.SerializeToString(deterministic=True), graph, tuple(cuts))

    def slice(self, kept: Kept) -> onnx.ModelProto:
        """Return the graph in which every group has only its `kept` channels."""
        return assembled(self.weight_slices(kept))


def prepare(model: onnx.ModelProto, space: PruneSpace, shapes: Shapes, ir_version: int) -> SliceableGraph:
    """Find the axes that shrink with the groups of `space`, for every weight of `model`, which `export` made.

    The exporter does not guarantee the names and scopes that are used here. So use the result only after
    `prove_slice` has compared its output with the torch network's. A weight that is not recognised is not cut, and
    that comparison then fails.
    """
    model = _copy(model)
    skeleton = stripped(model, ir_version)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    _let_reshapes_follow(skeleton, model, arrays)
    weights: dict[tuple[str, tuple[Cut, ...]], _Weight] = {}
    depthwise = []
    for node_index, node in enumerate(model.graph.node):
        for position, name in enumerate(node.input):
            if name not in arrays:
                continue
            cuts = _cuts(node, position, arrays, shapes, space)
            taken = sum(key[0] == name for key in weights)
            weight = weights.setdefault((name, cuts), _Weight(f"{name}#{taken}" if taken else name, arrays[name], cuts))
            skeleton.graph.node[node_index].input[position] = weight.name
            if (
                node.op_type == "Conv"
                and position == 1
                and any(cut[0] == 0 for cut in cuts)
                and _is_depthwise(node, arrays[name])
            ):
                depthwise.append((node_index, next(cut[1] for cut in cuts if cut[0] == 0)))
    del skeleton.graph.initializer[:]
    return SliceableGraph(space, skeleton, tuple(weights.values()), tuple(depthwise))


def _cuts(
    node: onnx.NodeProto, position: int, arrays: Mapping[str, NDArray[np.generic]], shapes: Shapes, space: PruneSpace
) -> tuple[Cut, ...]:
    name = node.input[position]
    shape = arrays[name].shape
    scope = scope_of(node)
    if node.op_type in ("Conv", "ConvTranspose") and position == 2:
        weight, axis = node.input[1], int(node.op_type == "ConvTranspose")
        return ((0, weight, axis),) if axis in space.axes.get(weight, ()) else ()
    # equal tensors are stored once, under one of their names, so the node's own module is searched first
    roles = _ROLES.get(node.op_type, ())
    kind = roles[position] if position < len(roles) else name.rpartition(".")[2]
    for tensor in (f"{scope}.{kind}", name):
        if tensor in shapes and (axes := _same_but_for_ones(shapes[tensor], shape)):
            return tuple((axes[axis], tensor, axis) for axis in space.axes.get(tensor, ()) if axis in axes)
    if node.op_type == "MatMul" and shapes.get(f"{scope}.weight") == shape[::-1]:
        weight = f"{scope}.weight"
        return tuple((1 - axis, weight, axis) for axis in space.axes.get(weight, ()))
    return ()


def _same_but_for_ones(torch_shape: tuple[int, ...], shape: tuple[int, ...]) -> dict[int, int]:
    """Map axes of one shape to the other if they differ only in axes of length 1; otherwise return an empty dict."""
    if torch_shape == shape:
        return {axis: axis for axis in range(len(shape))}
    ours = [axis for axis, size in enumerate(torch_shape) if size != 1]
    theirs = [axis for axis, size in enumerate(shape) if size != 1]
    same = [torch_shape[axis] for axis in ours] == [shape[axis] for axis in theirs]
    return dict(zip(ours, theirs, strict=True)) if same else {}


def _is_depthwise(node: onnx.NodeProto, weight: NDArray[np.generic]) -> bool:
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return bool(group > 1 and group == weight.shape[0] and weight.shape[1] == 1)


def _let_reshapes_follow(skeleton: onnx.ModelProto, model: onnx.ModelProto, arrays: dict[str, NDArray[np.generic]]) -> None:
    """Replace the target shapes of Reshape nodes, because they contain channel counts.

    (1, 512, 7, 7) -> [1, 25088] becomes [0, -1]; (1, 116, 28, 28) -> [1, 2, 58, 28, 28] becomes [0, 2, -1, 28, 28].
    0 copies a leading axis that both shapes share. -1 lets the runtime compute the last axis that differs.
    """
    dims = _dimensions(model)
    for index, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in arrays or not {node.input[0], node.output[0]} <= set(dims):
            continue
        before, after = dims[node.input[0]], dims[node.output[0]]
        if any(size < 1 for size in (*before, *after)):
            continue
        lead = 0
        while lead < min(len(before), len(after)) and before[lead] == after[lead]:
            lead += 1
        tail = 0
        while tail < min(len(before), len(after)) - lead and before[-1 - tail] == after[-1 - tail]:
            tail += 1
        follows = [0] * lead + after[lead:]
        if lead < len(after) - tail:
            follows[len(after) - tail - 1] = -1
        name = f"{node.input[1]}@{index}"
        arrays[name] = np.asarray(follows, dtype=np.int64)
        model.graph.node[index].input[1] = name
        follower = skeleton.graph.node[index]
        kept_attributes = [attribute for attribute in follower.attribute if attribute.name != "allowzero"]
        del follower.attribute[:]
        follower.attribute.extend(kept_attributes)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _dimensions(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
