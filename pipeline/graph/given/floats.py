"""Floats: half and double precision become single precision, in which networks are trained and compared here."""

from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

__all__ = ["to_single"]

OTHERS = (TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
TYPED = {"Cast": "to", "EyeLike": "dtype", "RandomNormal": "dtype", "RandomUniform": "dtype"}
"""Operator -> the attribute that holds a type."""


def to_single(model: onnx.ModelProto) -> bool:
    """Make all floating-point numbers of `model` float32, in place. Returns whether there were others."""
    graph = model.graph
    found = [_tensor(tensor) for tensor in graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                found.append(_tensor(attribute.t))
            if attribute.name == TYPED.get(node.op_type) and attribute.i in OTHERS:
                attribute.i = TensorProto.FLOAT
                found.append(True)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            found.append(True)
    del graph.value_info[:]
    return any(found)


def _tensor(tensor: Any) -> bool:
    if tensor.data_type not in OTHERS:
        return False
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        values = np.clip(numpy_helper.to_array(tensor).astype(np.float64), limits.min, limits.max).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return True
