"""Fold BatchNormalization nodes into the layers before them."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.graph.edit import attribute_of, free_name, keep_only, names_in, uses_of
from pipeline.graph.shapes import Shape, shapes_of

__all__ = ["Sources", "fold_batchnorms"]

Array = NDArray[np.float64]

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass
class Sources:
    """Where the new initializers come from; see `pipeline.graph.fold.Folded`."""

    follows: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pair:
    """A layer and the BatchNormalization that alone uses its output."""

    norm: onnx.NodeProto
    before: onnx.NodeProto
    """The node whose output the norm reads: the layer, or what is between: the Add of a bias, a Reshape."""
    layer: onnx.NodeProto
    biased: onnx.NodeProto | None
    """The node that adds the bias, the layer or an Add; None if the layer is a MatMul without bias."""
    bias: str
    """Name of the bias; '' if there is none."""

    @property
    def weight(self) -> str:
        return str(self.layer.input[1])

    @property
    def key(self) -> tuple[object, ...]:
        """Layers that share a weight and have equal keys go on sharing it."""
        form = (attribute_of(self.layer, "transB", 0), attribute_of(self.layer, "group", 1), _number(self.layer, "beta", 1.0))
        return (self.layer.op_type, *form, *self.norm.input[1:], _number(self.norm, "epsilon", 1e-5))


def fold_batchnorms(model: onnx.ModelProto) -> Sources:
    """Fold in `model`, in place. Initializers may be left that nothing uses."""
    sources = Sources()
    while pairs := _Finder(model).pairs():  # a second BatchNormalization in a row is folded in a second round
        _Round(model.graph, pairs, sources).fold()
    return sources


class _Finder:
    """Finds the pairs of a graph. Only operators, names and shapes decide."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.norms = [node for node in graph.node if node.op_type == "BatchNormalization" and node.domain == ""]
        self.weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type in FLOATS}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.uses = uses_of(graph)
        self.shapes: Mapping[str, Shape] = shapes_of(model) if self.norms else {}

    def pairs(self) -> list[_Pair]:
        return [pair for norm in self.norms if (pair := self._pair(norm)) is not None]

    def _pair(self, norm: onnx.NodeProto) -> _Pair | None:
        before = self._alone(norm.input[0])
        known = all(name in self.weights for name in norm.input[1:]) and not any(norm.output[1:])
        if before is None or not known or attribute_of(norm, "training_mode", 0):
            return None
        width = self.weights[norm.input[1]]
        if before.op_type in ("Conv", "ConvTranspose", "Gemm"):
            bias = before.input[2] if len(before.input) > 2 else ""
            if self._width(before) == width and (not bias or self.weights.get(bias) == width):
                return _Pair(norm, before, before, before, bias)
            return None
        return self._linear(norm, before, width)

    def _linear(self, norm: onnx.NodeProto, before: onnx.NodeProto, width: Shape) -> _Pair | None:
        """MatMul -> perhaps Add of a bias -> perhaps Reshape to (rows, channels) -> norm."""
        if len(self.shapes.get(norm.input[0], ())) != 2:
            return None  # the norm's channels are not on the last axis
        node: onnx.NodeProto | None = before
        if before.op_type == "Reshape" and self.shapes.get(before.input[0], (0,))[-1:] == width:
            node = self._alone(before.input[0])
        add, bias = None, ""
        if node is not None and node.op_type == "Add":
            add, constants = node, [name for name in node.input if self.weights.get(name) == width]
            if len(constants) != 1:
                return None
            bias = constants[0]
            node = self._alone(next(name for name in node.input if name != bias))
        if node is None or node.op_type != "MatMul" or self._width(node) != width:
            return None
        return _Pair(norm, before, node, add, bias)

    def _alone(self, name: str) -> onnx.NodeProto | None:
        """The node that computes `name`, if `name` has one use."""
        return self.producers.get(name) if self.uses[name] == 1 else None

    def _width(self, layer: onnx.NodeProto) -> Shape | None:
        """(number of output channels,) of a layer whose weight is an initializer."""
        shape = self.weights.get(layer.input[1])
        if shape is None or (layer.op_type in ("Gemm", "MatMul") and len(shape) != 2):
            return None
        if layer.op_type == "ConvTranspose":
            return (shape[1] * attribute_of(layer, "group", 1),)
        return (shape[0 if layer.op_type == "Conv" or attribute_of(layer, "transB", 0) else 1],)


class _Round:
    """Folds pairs that do not depend on each other. All values are computed from those before the round."""

    def __init__(self, graph: onnx.GraphProto, pairs: list[_Pair], sources: Sources) -> None:
        self.graph, self.pairs, self.sources = graph, pairs, sources
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.uses, self.taken = uses_of(graph), names_in(graph)
        self.sharing = Counter((name, pair.key) for pair in pairs for name in (pair.weight, pair.bias))
        self.done: dict[tuple[str, tuple[object, ...]], str] = {}
        self.values: dict[str, onnx.TensorProto] = {}

    def fold(self) -> None:
        for pair in self.pairs:
            weight, bias = self._fold_values(pair)
            pair.layer.input[1] = weight
            if pair.biased is None:  # the norm becomes the Add of the bias
                pair.norm.op_type = "Add"
                pair.norm.input[1:] = [bias]
                del pair.norm.attribute[:]
                continue
            if pair.biased.op_type == "Add":
                pair.biased.input[:] = [bias if name == pair.bias else name for name in pair.biased.input]
            else:
                pair.biased.input[2:] = [bias]
            kept = [attribute for attribute in pair.layer.attribute if attribute.name != "beta"]
            del pair.layer.attribute[:]
            pair.layer.attribute.extend(kept)
            pair.before.output[0] = pair.norm.output[0]
        gone = {pair.norm.output[0] for pair in self.pairs if pair.biased is not None}
        keep_only(self.graph.node, lambda node: not (node.op_type == "BatchNormalization" and node.output[0] in gone))
        for name, tensor in self.values.items():
            if name in self.tensors:
                self.tensors[name].CopyFrom(tensor)
            else:
                self.graph.initializer.append(tensor)

    def _fold_values(self, pair: _Pair) -> tuple[str, str]:
        """Compute the new weight and bias, and return their names."""
        scale, shift, mean, variance = (self._array(name) for name in pair.norm.input[1:])
        factor = scale / np.sqrt(variance + _number(pair.norm, "epsilon", 1e-5))
        bias = _number(pair.layer, "beta", 1.0) * self._array(pair.bias) if pair.bias else np.zeros_like(mean)
        weight_name = self._target(pair.weight, pair.key)
        self._write(weight_name, _scaled(self._array(pair.weight), factor, pair.layer), pair.weight)
        if pair.bias and pair.bias not in self.sources.follows:
            bias_name = self._target(pair.bias, pair.key)
        else:
            bias_name = self._new_bias(pair, weight_name)
            self.sources.follows[bias_name] = weight_name
        self._write(bias_name, (bias - mean) * factor + shift, pair.weight)
        return weight_name, bias_name

    def _target(self, name: str, key: tuple[object, ...]) -> str:
        """`name`, or the name of a copy if other layers use that tensor otherwise."""
        if (name, key) not in self.done:
            alone = self.uses[name] == self.sharing[name, key]
            self.done[name, key] = name if alone else self._taken(name)
            if not alone:
                self.sources.copies[self.done[name, key]] = self.sources.copies.get(name, name)
        return self.done[name, key]

    def _new_bias(self, pair: _Pair, weight_name: str) -> str:
        """The bias's name after the weight's: 'a.bias' for 'a.weight'. A bias of an earlier round keeps its name."""
        place = (f"bias of {weight_name}", pair.key)
        if place not in self.done:
            stem = re.sub(r"weight(_T|_folded)?(?=(_\d+)?$)", "bias", weight_name)
            self.done[place] = pair.bias or self._taken(stem if stem != weight_name else f"{weight_name}_bias")
        return self.done[place]

    def _taken(self, wanted: str) -> str:
        name = free_name(wanted, self.taken)
        self.taken.add(name)
        return name

    def _array(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensors[name]).astype(np.float64)

    def _write(self, name: str, values: Array, like: str) -> None:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensors[like].data_type)
        self.values[name] = numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), name)


def _scaled(weight: Array, factor: Array, layer: onnx.NodeProto) -> Array:
    """`weight` with each output channel times its factor."""
    spatial = (1,) * (weight.ndim - 2)
    if layer.op_type == "ConvTranspose":  # (inputs, outputs of one group, ...)
        group = attribute_of(layer, "group", 1)
        grouped = weight.reshape(group, -1, *weight.shape[1:])
        return (grouped * factor.reshape(group, 1, -1, *spatial)).reshape(weight.shape)
    first = layer.op_type == "Conv" or attribute_of(layer, "transB", 0)
    return weight * (factor.reshape(-1, 1, *spatial) if first else factor)


def _number(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((float(attribute.f) for attribute in node.attribute if attribute.name == name), default)
