"""Fixed inputs: the inputs of an ONNX file, with a size for every free dimension."""

import difflib
import math
from collections.abc import Sequence

import onnx
from onnx import TensorProto

from pipeline.core.network_input import NUMBERS, UNNAMED_ARRAY, NetworkInput
from pipeline.graph.given.door import Refused, Shapes, real_inputs

__all__ = ["fix_inputs"]

MAX_INPUT_VALUES = 2**27
"""All inputs together. Half a gigabyte of float32; no image is that large."""
MAX_DIMENSIONS = 32
"""numpy has no arrays with more."""
Sizes = list[int | str]
"""Sizes of an input as its file declares them: a number, the name of a free dimension, or "" for one without a name."""


def fix_inputs(graph: onnx.GraphProto, given: Shapes, option: str = "--shape") -> tuple[NetworkInput, ...]:
    """Give every input of `graph` a fixed shape, in place, and return the inputs without those that are weights.

    `given`: shapes of inputs by name; the name '' stands for the only input. `option`: where they come from, for messages. A free
    dimension that has the name of a given one gets its size, and a free batch size becomes 1. Raises Refused, with the reason, if
    a size is missing or does not fit, or if an input is no tensor of numbers.
    """
    inputs = real_inputs(graph)
    shapes = _by_name([value.name for value in inputs], given, option)
    kinds = {value.name: _kind(value) for value in inputs}
    free: dict[str, int] = {}
    for value in inputs:
        if value.name in shapes:
            _fit(value, shapes[value.name], free, option)
    for value in inputs:
        if value.name not in shapes:
            shapes[value.name] = _completed(value, free)
    deep = [name for name, shape in shapes.items() if len(shape) > MAX_DIMENSIONS]
    if deep:
        raise Refused(f"its input '{deep[0]}' has {len(shapes[deep[0]])} dimensions; at most {MAX_DIMENSIONS} can be measured")
    if sum(math.prod(shape) for shape in shapes.values()) > MAX_INPUT_VALUES:
        name, shape = max(shapes.items(), key=lambda item: math.prod(item[1]))
        raise Refused(
            f"its inputs have more than {MAX_INPUT_VALUES} values together; the largest is '{name}' with {_text(shape)}"
        )
    for value in inputs:
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for size in shapes[value.name]:
            dims.add(dim_value=size)
    return tuple(NetworkInput(value.name, kinds[value.name], shapes[value.name]) for value in inputs)


def _by_name(names: list[str], given: Shapes, option: str) -> dict[str, tuple[int, ...]]:
    """The given shapes, with the name of the only input in place of '', or of the name of an array that has none."""
    shapes = dict(given)
    if "" in shapes and len(names) != 1:
        raise Refused(f"has {len(names)} inputs ({', '.join(names[:8])}); name one of them: {option} NAME=SIZES")
    for unnamed in ("", UNNAMED_ARRAY):
        if len(names) == 1 and unnamed in shapes and unnamed not in names:
            shapes.setdefault(names[0], shapes.pop(unnamed))
    unknown = [name for name in shapes if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        advice = f"did you mean '{near[0]}'? " if near else ""
        raise Refused(f"has no input '{unknown[0]}' ({option}); {advice}its inputs are {', '.join(names[:8]) or 'none'}")
    return shapes


def _kind(value: onnx.ValueInfoProto) -> str:
    """The numpy name of the type of a tensor of numbers."""
    what = value.type.WhichOneof("value")
    if what != "tensor_type":
        raise Refused(f"its input '{value.name}' is a {(what or 'value of unknown type').removesuffix('_type')}, not a tensor")
    number = value.type.tensor_type.elem_type
    known = number in TensorProto.DataType.values()
    name = TensorProto.DataType.Name(number) if known else f"of type {number}"
    numpy_name = {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    if numpy_name not in NUMBERS:
        raise Refused(f"its input '{value.name}' is {name}; only {', '.join(NUMBERS)} can be measured")
    return numpy_name


def _declared(value: onnx.ValueInfoProto) -> Sizes | None:
    """The declared sizes; None where the file does not even say how many there are."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in tensor.shape.dim]


def _fit(value: onnx.ValueInfoProto, shape: tuple[int, ...], free: dict[str, int], option: str) -> None:
    """Check `shape` against what the file declares, and add the sizes of named dimensions to `free`."""
    declared = _declared(value)
    if declared is None:
        return
    if len(declared) != len(shape) or any(isinstance(a, int) and a != b for a, b in zip(declared, shape, strict=True)):
        raise Refused(f"its input '{value.name}' is {_text(declared)}, which {option} {_text(shape)} does not fit")
    for name, size in zip(declared, shape, strict=True):
        if isinstance(name, str) and name and free.setdefault(name, size) != size:
            raise Refused(f"its dimension '{name}' is {free[name]} in one input and {size} in '{value.name}' ({option})")


def _completed(value: onnx.ValueInfoProto, free: dict[str, int]) -> tuple[int, ...]:
    """The declared shape with the sizes that are known in place of the free ones."""
    declared = _declared(value)
    if declared is None:
        raise Refused(f"its input '{value.name}' has no shape; give one: --shape {value.name}=1x3x224x224")
    sizes = [size if isinstance(size, int) else free.get(size, 0) for size in declared]
    if sizes and not sizes[0]:
        sizes[0] = 1  # a free batch size becomes one image, as on a device
        if declared[0]:
            free[str(declared[0])] = 1
    if 0 in sizes:
        example = _text([size or 224 for size in sizes])
        raise Refused(f"its input '{value.name}' is {_text(declared)}; give its free sizes: --shape {value.name}={example}")
    return tuple(sizes)


def _text(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) if isinstance(size, int) else "?" for size in shape) or "a scalar"
