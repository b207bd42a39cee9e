"""Weight file: put an ONNX graph together from weight slices, and compute its length without making it."""

import math

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.core.weight_slices import WeightSlices
from pipeline.graph.shapes import FEW

__all__ = ["assembled", "file_size_bytes"]


def assembled(weight_slices: WeightSlices, *, values: bool = True) -> onnx.ModelProto:
    """Return the graph of `weight_slices`. Without `values`, float32 tensors have a shape but no values, except small ones, which
    may be sizes or scales that other shapes depend on.
    """
    model = onnx.load_model_from_string(weight_slices.model)
    model.graph.ParseFromString(weight_slices.graph)
    for tensor, cuts in zip(weight_slices.base.tensors, weight_slices.cuts, strict=True):
        if cuts is None:
            continue
        array = tensor.values
        if values or array.dtype != np.float32 or array.size <= FEW:
            for axis, index in cuts:
                array = np.take(array, index, axis=axis)
            model.graph.initializer.append(numpy_helper.from_array(array, tensor.name))
        else:
            shape = list(array.shape)
            for axis, index in cuts:
                shape[axis] = len(index)
            model.graph.initializer.add(name=tensor.name, data_type=tensor.onnx_type, dims=shape)
    return model


def file_size_bytes(weight_slices: WeightSlices, outline: onnx.ModelProto) -> int:
    """Return the length of the file without making it. `outline` is the graph of `weight_slices`, assembled without values."""
    initializers = 0
    for tensor in outline.graph.initializer:
        raw = 4 * math.prod(tensor.dims) if not tensor.HasField("raw_data") else 0
        size = tensor.ByteSize() + (1 + _varint_bytes(raw) + raw if raw or not tensor.HasField("raw_data") else 0)
        initializers += 1 + _varint_bytes(size) + size
    graph = len(weight_slices.graph) + initializers
    return len(weight_slices.model) + 1 + _varint_bytes(graph) + graph


def _varint_bytes(number: int) -> int:
    """Length of a number in protobuf's encoding, which stores seven bits per byte."""
    return max(1, -(-number.bit_length() // 7))
