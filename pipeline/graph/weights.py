"""Weights: make each weight of an exported graph an initializer, under a name that tells where it comes from."""

import contextlib
import json
import math
from collections.abc import Container, Iterator, Mapping

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes import InPlacePass, PassResult
from onnxscript import optimizer

from pipeline.graph.edit import free_name
from pipeline.graph.metadata import CONSTANTS, SCOPES
from pipeline.graph.module_names import innermost

__all__ = ["FoldWeights", "hidden_dropout", "mark_constants", "name_weights"]

LARGEST_GROWN = 2**20
"""Number of values up to which a constant may be larger than what it is computed from; for example a table of relative
positions. A larger one, such as a small constant that is expanded to the size of an image, is computed at inference."""
UNLIMITED = 2**62

ROLES = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {0: "weight", 1: "weight"},
    "LSTM": {1: "weight_ih", 2: "weight_hh", 3: "bias"},
    "GRU": {1: "weight_ih", 2: "weight_hh", 3: "bias"},
    "RNN": {1: "weight_ih", 2: "weight_hh", 3: "bias"},
}
"""Operator -> what its inputs are called in torch."""


Originals = Mapping[str, onnx_ir.Value]
"""The initializers as they were exported: tensors of the torch state dict, under their names there."""


class FoldWeights(InPlacePass):
    """Replaces what is computed from initializers alone by initializers, unless it is much larger than they are."""

    def call(self, model: onnx_ir.Model) -> PassResult:
        """Fold `model` in place."""
        folded = optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=UNLIMITED,
            output_size_limit=UNLIMITED,
            should_fold=_should_fold,
        )
        return PassResult(model, modified=_fold_splits(model) or folded.modified)


def _should_fold(node: onnx_ir.Node) -> bool | None:
    """False where the result is too large; None leaves the decision to onnxscript."""
    given = sum(value.const_value.size for value in node.inputs if value is not None and value.const_value is not None)
    size = _size(node.outputs[0])
    if size is None or size > max(given, LARGEST_GROWN):
        return False
    return True if node.op_type == "ConstantOfShape" else None


def _size(value: onnx_ir.Value) -> int | None:
    shape = value.shape
    return math.prod(shape.numpy()) if shape is not None and shape.is_static() else None


def _fold_splits(model: onnx_ir.Model) -> bool:
    """Split weights, which onnxscript does not do, because a Split has several outputs."""
    graph = model.graph
    done = False
    for node in [node for node in graph if node.op_type == "Split" and node.domain == ""]:
        whole = node.inputs[0]
        shapes = [value.shape.numpy() for value in node.outputs if value.shape is not None and value.shape.is_static()]
        if whole is None or whole.const_value is None or len(shapes) < len(node.outputs):
            continue
        axis = node.attributes.get_int("axis", 0)
        ends = np.cumsum([shape[axis] for shape in shapes])
        for value, part in zip(node.outputs, np.split(whole.const_value.numpy(), ends[:-1], axis), strict=True):
            tensor = onnx_ir.tensor(np.ascontiguousarray(part), name=value.name)
            constant = onnx_ir.Value(name=value.name, shape=value.shape, type=value.type, const_value=tensor)
            constant.meta[optimizer.FOLDED_FROM_KEY] = whole.meta.get(optimizer.FOLDED_FROM_KEY, set()) | {str(whole.name)}
            value.name = None
            value.replace_all_uses_with(constant)
            graph.register_initializer(constant)
        graph.remove(node, safe=True)
        done = True
    return done


@contextlib.contextmanager
def hidden_dropout(model: onnx_ir.Model) -> Iterator[None]:
    """Hide the Dropout nodes of `model` from onnxscript, which removes them, because they do nothing at inference."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Dropout" and node.domain == ""]
    for node in nodes:
        node.domain = "hidden"
    try:
        yield
    finally:
        for node in nodes:
            node.domain = ""


def mark_constants(model: onnx_ir.Model, originals: Originals, parameters: Container[str]) -> None:
    """Write into the metadata of `model` which float initializers are not computed from `parameters`, as names of `originals`."""
    learnable = {id(value) for name, value in originals.items() if name in parameters}

    def is_constant(value: onnx_ir.Value) -> bool:
        folded_from = value.meta.get(optimizer.FOLDED_FROM_KEY, ())
        return id(value) not in learnable and not any(name in parameters for name in folded_from)

    floats = (value for value in model.graph.initializers.values() if value.dtype and value.dtype.is_floating_point())
    model.metadata_props[CONSTANTS] = json.dumps(sorted(str(value.name) for value in floats if is_constant(value)))


def name_weights(model: onnx_ir.Model, originals: Originals) -> None:
    """Name the computed weights of `model` after what they are computed from.

    The transposed weight of a linear layer 'head' is 'head.weight_T'. What is computed from one tensor of the state dict in
    another way is 'head.weight_folded'. What is computed from several, such as weight norm's, has the name that the layer's
    own tensor would have: 'head.weight'. A constant of the network's code keeps its name, unless it is the weight of a layer.
    """
    graph = model.graph
    own = {id(value) for value in originals.values()}
    taken = {str(value.name) for node in graph.all_nodes() for value in node.outputs} | set(graph.initializers) | set(originals)
    taken |= {str(value.name) for value in graph.inputs}
    for node in graph:
        for position, value in enumerate(node.inputs):
            role = ROLES.get(node.op_type, {}).get(position)
            if value is None or id(value) in own or not value.is_initializer() or value.is_graph_output():
                continue
            if role is None and not _is_array(value):
                continue
            wanted = _name(value, role, innermost(node.metadata_props.get(SCOPES, "[]")), originals)
            if wanted is not None:
                own.add(id(value))
                value.name = free_name(wanted, taken)
                taken.add(value.name)


def _name(value: onnx_ir.Value, role: str | None, scope: str, originals: Originals) -> str | None:
    origins = value.meta.get(optimizer.FOLDED_FROM_KEY, set()) & set(originals)
    if len(origins) == 1:
        origin = originals[next(iter(origins))]
        transposed = len(value.shape or ()) == 2 and np.array_equal(_array(origin).T, _array(value))
        return f"{origin.name}_T" if transposed else f"{origin.name}_folded"
    if not scope or not (role or origins):
        return None
    role = role or "computed"
    return f"{scope}.{role}_folded" if f"{scope}.{role}" in originals else f"{scope}.{role}"


def _is_array(value: onnx_ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point() and _array(value).size > 1


def _array(value: onnx_ir.Value) -> NDArray[np.generic]:
    tensor = onnx_ir.convenience.get_const_tensor(value)
    return np.zeros(0) if tensor is None else tensor.numpy()
