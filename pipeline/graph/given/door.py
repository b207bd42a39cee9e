"""Door: images become float32 of a fixed shape, (1, C, H, W), whatever a file has. Other inputs get a fixed shape."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.graph.edit import free_name, keep_only, names_in, rename_uses

__all__ = ["Door", "Refused", "Shapes", "copied", "make_doors", "real_inputs"]

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
    """What was done to one input of a file."""

    name: str
    shape: tuple[int, ...]
    """Shape of the new input."""
    own_shape: tuple[int, ...]
    """Shape of the file's input, with one sample."""
    type: str
    """Type of the new input, such as 'float32'."""
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


def fix_shapes(graph: onnx.GraphProto, given: Shapes) -> None:
    """Give each input of `graph` a fixed shape with one sample, in place. Raises Refused."""
    inputs = real_inputs(graph)
    names = [value.name for value in inputs]
    if not inputs:
        raise Refused("has no input")
    unknown = [name for name in given if name and name not in names]
    if unknown:
        raise Refused(f"has no input '{unknown[0]}' (--shape); its inputs are {', '.join(names)}")
    if "" in given and len(inputs) > 1:
        raise Refused(f"has {len(inputs)} inputs ({', '.join(names[:5])}); name the one: --shape {names[0]}={_text(given[''])}")
    for value in inputs:
        shape = _fixed(value, given.get(value.name, given.get("", ())))
        tensor = value.type.tensor_type
        tensor.shape.ClearField("dim")
        for size in shape:
            tensor.shape.dim.add(dim_value=size)
    kept = set(names)
    keep_only(graph.input, lambda each: each.name in kept)


def _fixed(value: onnx.ValueInfoProto, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one input. `wanted` is what the user says; empty if nothing."""
    own = [dim.dim_value if dim.dim_value > 0 else 0 for dim in value.type.tensor_type.shape.dim]
    shape = list(wanted) or [1, *own[1:]] if own else list(wanted)
    if wanted and own and (len(wanted) != len(own) or any(a and a != b for a, b in zip(own[1:], wanted[1:], strict=True))):
        raise Refused(f"its input '{value.name}' is {_text(own)}, which --shape {_text(shape)} does not fit")
    if not shape and value.type.tensor_type.HasField("shape"):
        raise Refused(f"its input '{value.name}' is a single value; give it a first axis for the sample, and export it again")
    if not shape or min(shape) < 1:
        free = _text(own) if own else "of unknown shape"
        example = "x".join(str(size or 224) for size in [1, *own[1:]]) if own else "1x3x224x224"
        raise Refused(f"its input '{value.name}' is {free}; give its free sizes: --shape {value.name}={example}")
    if shape[0] != 1:
        raise Refused(
            f"--shape {value.name}={_text(shape)}: the first size must be 1, because the first axis is the sample; if it is "
            "something else, such as the layers of a state, give the network an axis for the sample, and export it again"
        )
    if math.prod(shape) > MAX_INPUT_VALUES or len(shape) > 32:
        raise Refused(f"its input '{value.name}' of {_text(shape)} holds more than {MAX_INPUT_VALUES} values; is it an image?")
    return tuple(shape)


def make_doors(model: onnx.ModelProto, given: Shapes) -> tuple[Door, ...]:
    """Change `model`, in place, so that its inputs have fixed shapes, and images are float32 (1, C, H, W). Raises Refused.

    The names of inputs and outputs stay. An image has four axes. One of (1, H, W, C) gets a Transpose, and one of another type a
    Cast. Other inputs of integers or booleans keep their type; all others become float32.
    """
    graph = model.graph
    fix_shapes(graph, given)
    computed = {name for node in graph.node for name in node.output}
    for value in graph.output:
        if value.name not in computed:
            raise Refused(f"computes nothing: its output '{value.name}' is an input or a weight")
    taken, nodes, doors = names_in(graph), list[onnx.NodeProto](), []
    for value in graph.input:
        door, made = _door(graph, value, taken)
        doors.append(door)
        nodes += made
    whole = [*nodes, *(copied(node) for node in graph.node)]
    del graph.node[:]
    graph.node.extend(whole)
    return tuple(doors)


def _door(graph: onnx.GraphProto, value: onnx.ValueInfoProto, taken: set[str]) -> tuple[Door, list[onnx.NodeProto]]:
    """What one input becomes, with the nodes behind it, which the others in `graph` read from now on."""
    name, kind = value.name, value.type.tensor_type.elem_type
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    image = len(shape) == 4
    if kind not in (*FLOATS, *INTEGERS) and (image or kind != TensorProto.BOOL):
        known = TensorProto.DataType.Name(kind) if kind in TensorProto.DataType.values() else str(kind)
        raise Refused(f"its input '{name}' is {known}; only numbers can be images")
    new = TensorProto.FLOAT if image or kind in FLOATS else kind
    door = _channels_first(shape) if image else shape
    nodes, last = list[onnx.NodeProto](), name
    for op, options in (
        ("Transpose", {"perm": [0, *range(2, len(shape)), 1]} if door != shape else None),
        ("Cast", {"to": kind} if kind != new else None),
    ):
        if options is not None:
            made = free_name(f"{name}_{op.lower()}", taken)
            taken.add(made)
            nodes.append(helper.make_node(op, [last], [made], name=made, **options))
            last = made
    rename_uses(graph, {name: last})
    value.CopyFrom(helper.make_tensor_value_info(name, new, door))
    return Door(name, door, shape, _type_name(new), _type_name(kind)), nodes


def _type_name(kind: int) -> str:
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name


def copied(node: onnx.NodeProto) -> onnx.NodeProto:
    """A copy of `node`, which stays when its graph is emptied."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _channels_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    if shape[3] in COLOURS and shape[1] not in COLOURS:
        return shape[0], shape[3], shape[1], shape[2]
    return shape


def _text(shape: Sequence[int]) -> str:
    return "x".join(str(size) if size else "?" for size in shape)
