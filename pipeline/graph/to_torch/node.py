"""Node: one node of an ONNX graph as data, and what the functions of the ops need to read it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from pipeline.errors import TraceError
from pipeline.foreign_text import clean_text

__all__ = ["DTYPES", "Node", "Precision", "as_ints", "as_tensor", "described", "node_of", "normal_axis"]

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}
"""ONNX element type -> torch dtype."""


class Precision(nn.Module):
    """The float type of the network. It follows `.double()`, `.float()` and the like, as a module's buffers do."""

    witness: Tensor

    def __init__(self, kind: int) -> None:
        """`kind` is the ONNX element type that the graph calls its float type."""
        super().__init__()
        self.kind = kind
        self.register_buffer("witness", torch.empty(0, dtype=DTYPES[kind]), persistent=False)

    def dtype_of(self, kind: int) -> torch.dtype:
        """The torch dtype of an ONNX element type. The graph's float type is the network's current one."""
        return self.witness.dtype if kind == self.kind else DTYPES[kind]

    def followed(self, literal: Tensor) -> Tensor:
        """A number that stands in the graph, in the network's current float type and on its device."""
        if literal.dtype == DTYPES[self.kind]:
            return literal.to(self.witness)
        return literal


@dataclass
class Node:
    """One node. Absent inputs and outputs have the name ''."""

    index: int
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int
    precision: Precision
    constants: dict[int, Tensor] = field(default_factory=dict)
    """Input position -> the integers that replace that input."""

    def ints(self, name: str) -> list[int] | None:
        """An attribute that is a list of integers, or None."""
        found = self.attributes.get(name)
        return None if found is None else [int(value) for value in found]

    def int(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def float(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        return str(self.attributes.get(name, default))


def node_of(proto: onnx.NodeProto, index: int, opset: int, precision: Precision) -> Node:
    """Read a node. Tensors in attributes become torch tensors."""
    attributes = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
    name = proto.name or f"{proto.op_type}_{index}"
    return Node(index, proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, opset, precision)


def described(node: Node) -> str:
    """The node for a message, for example "node 'conv1' (Conv)"."""
    return f"node '{clean_text(node.name, 80)}' ({clean_text(node.op, 40)})"


def as_tensor(proto: onnx.TensorProto) -> Tensor:
    """The values of an ONNX tensor. Raises TraceError if torch has no such element type."""
    kind = DTYPES.get(proto.data_type)
    if kind is None:
        name = onnx.TensorProto.DataType.Name(proto.data_type)
        raise TraceError(
            f"tensor '{clean_text(proto.name, 80)}' of the graph: torch has no element type {name}; export the network in float32"
        )
    values = numpy_helper.to_array(proto)
    if kind == torch.bfloat16:
        return torch.from_numpy(values.astype(np.float32)).to(kind)
    return torch.from_numpy(np.array(values, order="C"))  # a copy: the array may be read-only


def as_ints(value: Tensor) -> list[int]:
    """The numbers of an integer tensor, flat."""
    return [int(number) for number in value.reshape(-1).tolist()]


def normal_axis(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def _attribute(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.FLOAT:
        return _shortest(attribute.f)
    if attribute.type == onnx.AttributeProto.FLOATS:
        return tuple(_shortest(value) for value in attribute.floats)
    if attribute.type == onnx.AttributeProto.TENSOR:
        return as_tensor(attribute.t)
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return tuple(word.decode("utf-8", "replace") for word in value)
    return tuple(value) if attribute.type == onnx.AttributeProto.INTS else value


def _shortest(value: float) -> float:
    """The shortest number that a float32 of the file stands for: 1e-5, not 9.99999974e-06. Float64 then gets what was meant."""
    return float(str(np.float32(value)))


Attributes = Mapping[str, Any]
