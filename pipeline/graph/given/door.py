"""Door: the input becomes float32 of a fixed shape, (1, C, H, W), whatever a file has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.graph.edit import free_name, keep_only, names_in, rename_uses

__all__ = ["Door", "Refused", "Shapes", "copied", "make_door", "real_inputs"]

MAX_INPUT_VALUES = 2**27
"""Half a gigabyte of float32; no image is that large."""
COLOURS = (1, 3, 4)
"""Numbers of channels by which a file with the channels last is known."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
INTEGERS = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64)

Shapes = Mapping[str, tuple[int, ...]]
"""Input -> its shape as the user gives it. The name '' stands for the only input."""


class Refused(Exception):
    """The file cannot be compressed. The message says why, and what to do."""


@dataclass(frozen=True)
class Door:
    """What was done to the input and the output of a file."""

    input_name: str
    output_name: str
    shape: tuple[int, ...]
    """Shape of the new input."""
    own_shape: tuple[int, ...]
    """Shape of the file's input, with one image."""
    own_type: str
    """Type of the file's input, such as 'uint8'."""

    @property
    def channels_last(self) -> bool:
        """Whether the file takes (N, H, W, C)."""
        return self.shape != self.own_shape


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """The inputs that are not weights. Files of old IR versions list the weights too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def fix_shape(graph: onnx.GraphProto, given: Shapes) -> tuple[int, ...]:
    """Give the only input of `graph` a fixed shape with one image, in place, and return the shape. Raises Refused."""
    inputs = real_inputs(graph)
    names = [value.name for value in inputs]
    unknown = [name for name in given if name and name not in names]
    if unknown:
        raise Refused(f"has no input '{unknown[0]}' (--shape); its inputs are {', '.join(names)}")
    if len(inputs) != 1:
        raise Refused(f"has {len(inputs)} inputs ({', '.join(names[:5])}); only networks with one can be compressed")
    value = inputs[0]
    tensor = value.type.tensor_type
    own = [dim.dim_value if dim.dim_value > 0 else 0 for dim in tensor.shape.dim]
    wanted = given.get(value.name, given.get("", ()))
    shape = list(wanted) or [1, *own[1:]] if own else list(wanted)
    if wanted and own and (len(wanted) != len(own) or any(a and a != b for a, b in zip(own[1:], wanted[1:], strict=True))):
        raise Refused(f"its input '{value.name}' is {_text(own)}, which --shape {_text(shape)} does not fit")
    if not shape or min(shape) < 1:
        free = _text(own) if own else "of unknown shape"
        example = "x".join(str(size or 224) for size in [1, *own[1:]]) if own else "1x3x224x224"
        raise Refused(f"its input '{value.name}' is {free}; give its free sizes: --shape {value.name}={example}")
    if shape[0] != 1:
        raise Refused(f"--shape {_text(shape)}: the first size must be 1, for one image")
    if math.prod(shape) > MAX_INPUT_VALUES or len(shape) > 32:
        raise Refused(f"its input '{value.name}' of {_text(shape)} holds more than {MAX_INPUT_VALUES} values; is it an image?")
    tensor.shape.ClearField("dim")
    for size in shape:
        tensor.shape.dim.add(dim_value=size)
    keep_only(graph.input, lambda each: each is value or each.name == value.name)
    return tuple(shape)


def make_door(model: onnx.ModelProto, given: Shapes) -> Door:
    """Change `model`, in place, so that its input is float32 (1, C, H, W). The names of input and output stay. Raises Refused.

    An input of (1, H, W, C) gets a Transpose, and one of another type a Cast.
    """
    graph = model.graph
    shape = fix_shape(graph, given)
    if len(graph.output) != 1:
        names = ", ".join(value.name for value in graph.output[:5])
        raise Refused(f"has {len(graph.output)} outputs ({names}); only networks with one can be compressed")
    name, output = graph.input[0].name, graph.output[0].name
    kind = graph.input[0].type.tensor_type.elem_type
    if kind not in (*FLOATS, *INTEGERS):
        known = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
        raise Refused(f"its input '{name}' is {known}; only numbers can be images")
    if not any(output in node.output for node in graph.node):
        raise Refused(f"computes nothing: its output '{output}' is an input or a weight")
    door = _channels_first(shape)
    nodes, last, taken = [], name, names_in(graph)
    for op, options in (
        ("Transpose", {"perm": [0, *range(2, len(shape)), 1]} if door != shape else None),
        ("Cast", {"to": kind} if kind != TensorProto.FLOAT else None),
    ):
        if options is not None:
            made = free_name(f"{name}_{op.lower()}", taken)
            taken.add(made)
            nodes.append(helper.make_node(op, [last], [made], name=made, **options))
            last = made
    rename_uses(graph, {name: last})
    if nodes:
        nodes[0].input[0] = name
    whole = [*nodes, *(copied(node) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(whole)
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, door))
    return Door(name, output, door, shape, np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name)


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy of `node`, which stays when its graph is emptied."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4 and shape[3] in COLOURS and shape[1] not in COLOURS:
        return shape[0], shape[3], shape[1], shape[2]
    return shape


def _text(shape: list[int]) -> str:
    return "x".join(str(size) if size else "?" for size in shape)
