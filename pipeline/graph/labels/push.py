"""Push: send the labels of all weights through a graph, node by node, and find which of them hang together."""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.core.onnx_outputs import open_session
from pipeline.errors import TraceError, one_line
from pipeline.graph.edit import copy_of, subgraphs
from pipeline.graph.labels import rules_elementwise, rules_layers, rules_move, rules_reduce, rules_spatial
from pipeline.graph.labels.fields import Value, resolve
from pipeline.graph.labels.trace import RULES, Grouped, Node, Trace, attributes
from pipeline.graph.metadata import opset_of
from pipeline.graph.module_names import places_of
from pipeline.graph.shapes import FEW, shapes_of

__all__ = ["push"]

FAMILIES = (rules_elementwise, rules_layers, rules_move, rules_reduce, rules_spatial)
"""The modules that enter their rules into the table when they are imported."""


def push(model: onnx.ModelProto, grouped: Grouped = "evenly") -> tuple[Trace, tuple[Node, ...]]:
    """Return the labels of every value of `model`, whose shapes are fixed, and its nodes as the rules saw them.

    Afterwards each field differs along one axis only. Raises TraceError when the shape of a value cannot be found.
    """
    constants: dict[str, NDArray[Any]] = {tensor.name: _constant(tensor) for tensor in model.graph.initializer}
    trace = Trace(opset_of(model), constants, grouped)
    shapes = _shapes(model)
    for value in model.graph.input:
        if value.name not in constants:
            trace.values[value.name] = Value(shapes[value.name])
    nodes = []
    places = places_of(model)
    for index, proto in enumerate(model.graph.node):
        node = Node(
            index,
            proto.op_type,
            proto.name,
            tuple(proto.input),
            tuple(proto.output),
            attributes(proto),
            tuple(shapes.get(name, ()) for name in proto.output),
            places[proto.name],
        )
        nodes.append(node)
        trace.enter(node)
        if node.op_type == "Constant" and "value" in node.attributes:
            constants[node.outputs[0]] = numpy_helper.to_array(node.attributes["value"])
            continue
        known = RULES.get(node.op_type) if proto.domain in ("", "ai.onnx") else None
        found = known(node, trace) if known and not _captured(proto) else _unknown(node, proto, trace)
        for name, value in zip(node.outputs, found, strict=True):
            if name:
                trace.values[name] = value
    trace.enter(None)
    for output in model.graph.output:
        trace.freeze(trace.value(output.name), "its channels are the network's output")
    for name, value in trace.values.items():
        fields = tuple(resolve(labels, trace.unions) for labels in value.fields)
        trace.values[name] = Value(value.shape, tuple(labels for labels in fields if labels.size > 1), value.initializer)
    return trace, tuple(nodes)


def _constant(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The values of an initializer. No rule looks at those of a large weight, so that zeros without memory stand for them."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if np.issubdtype(dtype, np.floating) and math.prod(tensor.dims) > FEW:
        return np.broadcast_to(np.zeros((), dtype=dtype), tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def _unknown(node: Node, proto: onnx.NodeProto, trace: Trace) -> list[Value]:
    """An op without a rule: nothing that it reads can be pruned."""
    for name in (*node.inputs, *_captured(proto)):
        trace.freeze(trace.value(name), f"its channels pass through {node}, an operator for which no rule is known")
    return [Value(shape) for shape in node.shapes]


def _captured(proto: onnx.NodeProto) -> list[str]:
    """The names that the subgraphs of a node read, which may be values of the graph around it."""
    return [name for graph in subgraphs(proto) for inner in graph.node for name in (*inner.input, *_captured(inner))]


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shape of every value: inferred where onnx can, otherwise as ONNX Runtime computes it for an input of zeros."""
    try:
        known = shapes_of(model)
    except Exception as problem:
        raise _without_sizes(problem) from None
    missing = [name for node in model.graph.node for name in node.output if name and name not in known]
    if missing:
        known.update(_run_shapes(model, missing, known))
    return known


def _without_sizes(problem: Exception) -> TraceError:
    return TraceError(
        "the sizes of the network's tensors cannot be found in its graph; write it so that they do not depend on the values of "
        f"the input ({one_line(problem, 120)})"
    )


def _run_shapes(model: onnx.ModelProto, missing: list[str], known: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    copy = copy_of(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing if name not in present)
    initializers = {tensor.name for tensor in copy.graph.initializer}
    inputs = {
        value.name: np.zeros(known[value.name], dtype=onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
        for value in copy.graph.input
        if value.name not in initializers
    }
    try:
        session = open_session(copy.SerializeToString(), threads=1, optimized=False)
        answers = session.run(missing, inputs)
    except Exception as problem:
        raise _without_sizes(problem) from None
    return {name: tuple(np.asarray(answer).shape) for name, answer in zip(missing, answers, strict=True)}
