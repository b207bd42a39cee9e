"""Double precision: run an ONNX file in ONNX Runtime with 64-bit floats, to tell the runtime's rounding from a wrong file."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.core.feeds import Arrays, Feeds, arrays_of
from pipeline.core.onnx_outputs import feeds_of, open_session
from pipeline.graph.structure import load_graph

__all__ = ["double_outputs"]

SINGLE_ONLY = frozenset(
    {"Conv", "ConvTranspose", "Resize", "InstanceNormalization", "AveragePool", "MaxPool", "Gelu", "HardSwish"}
)
"""Operators that ONNX Runtime computes in single precision only. Others are found by trying."""
MOST_TRIES = 16
_REFUSED = re.compile(r"implementation for (\w+)\(|of operator \((\w+)\)")


def double_outputs(data: bytes, samples: Sequence[Feeds]) -> Arrays | None:
    """All outputs of the ONNX file `data` for each of `samples`, stacked and rounded to float32. None if it does not run so.

    All numbers are 64-bit floats. Operators that ONNX Runtime has in single precision only get their inputs in single precision.
    """
    single = set(SINGLE_ONLY)
    for _ in range(MOST_TRIES):
        try:
            session = open_session(_doubled(load_graph(data), single).SerializeToString(), threads=1, optimized=False)
            feeds = [feeds_of(session, [_wide(array) for array in arrays_of(sample)]) for sample in samples]
            each = [session.run(None, feed) for feed in feeds]
        except Exception as problem:  # ONNX Runtime's own errors, and those of onnx for a graph whose types are not known
            found = _REFUSED.search(str(problem))
            name = (found[1] or found[2]) if found else ""
            if not name or name in single or name == "Cast":
                return None
            single.add(name)
        else:
            return tuple(_narrow(np.stack([np.asarray(value) for value in values])) for values in zip(*each, strict=True))
    return None


def _doubled(model: onnx.ModelProto, single: set[str]) -> onnx.ModelProto:
    """`model`, in place, with 64-bit floats in place of float32, except around the operators in `single`."""
    floats = _float_names(model)
    graph = model.graph
    for tensor in graph.initializer:
        tensor.CopyFrom(_double_tensor(tensor))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    nodes = []
    for number, node in enumerate(graph.node):
        if node.op_type not in single:
            nodes.append(_double_node(node))
            continue
        before, after = [], []
        for position, name in enumerate(node.input):
            if name in floats:
                node.input[position] = f"{name}/single/{number}/{position}"
                before.append(helper.make_node("Cast", [name], [node.input[position]], to=TensorProto.FLOAT))
        for position, name in enumerate(node.output):
            if name in floats:
                node.output[position] = f"{name}/single/{number}"
                after.append(helper.make_node("Cast", [node.output[position]], [name], to=TensorProto.DOUBLE))
        nodes += [*before, node, *after]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    return model


def _float_names(model: onnx.ModelProto) -> set[str]:
    """The names of all float32 tensors."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    found = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return found | {tensor.name for tensor in inferred.initializer if tensor.data_type == TensorProto.FLOAT}


def _double_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """`node`, in place, if it makes float32 numbers by itself: a constant, or a conversion to float32."""
    if node.op_type == "ConstantOfShape" and not node.attribute:
        node.attribute.append(helper.make_attribute("value", helper.make_tensor("", TensorProto.DOUBLE, [1], [0.0])))
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            attribute.t.CopyFrom(_double_tensor(attribute.t))
        elif (node.op_type, attribute.name, attribute.i) == ("Cast", "to", TensorProto.FLOAT):
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            number: Any = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(np.asarray(number, dtype=np.float64))))
    return node


def _double_tensor(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float64 else array
