"""Counts: the multiply-accumulate operations and the parameters of an ONNX graph, as it is measured and shipped."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import onnx

from pipeline.errors import TraceError, one_line
from pipeline.graph.edit import attribute_of, subgraphs
from pipeline.graph.metadata import constants_of
from pipeline.graph.shapes import Shape, shapes_of

__all__ = ["layer_macs", "macs", "params"]

Shapes = Mapping[str, Shape]

FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


def macs(model: onnx.ModelProto) -> int:
    """Return the number of multiply-accumulate operations for one input, that is for a batch of one.

    Counted are convolutions, products of matrices (also of two activations, as in attention), and recurrent layers. Additions of
    biases, activation functions, normalisation and pooling are not counted, as is usual.

    Floats of `model` may lack their values, as those of `assembled(..., values=False)`. Raises TraceError when the shapes around
    a counted operator cannot be inferred.
    """
    return sum(count for _, count in _counted(model)) // _batch(model)


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Return the operations for one input of each weight, by the weight's name, in the order of the graph.

    A product of two activations has the name of its node. Raises TraceError like `macs`.
    """
    found: Counter[str] = Counter()
    for name, count in _counted(model):
        found[name] += count
    return {name: count // _batch(model) for name, count in found.items()}


def params(model: onnx.ModelProto) -> int:
    """Return the number of learnable parameters in the file.

    A BatchNormalization that is folded counts as the bias that it became; where it stays, its scale and shift count, and its
    running statistics do not. Weights that never reach the file, such as those of auxiliary heads, do not count. A weight that
    the file holds twice counts twice. In an int8 file the int8 weights count, and their scales do not.

    Where the file does not say which numbers are learnable (`constants_of`), every float tensor of more than one value is.
    """
    constants = constants_of(model)
    skipped = set(constants or ())
    counted: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            skipped.update(node.input[3:5])
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            skipped.update(node.input[1:])
            counted.update(node.input[:1])
        elif node.op_type in ("Resize", "Upsample", "Pad", "Clip"):
            skipped.update(node.input[1:])
    total = 0
    for tensor in model.graph.initializer:
        size = math.prod(tensor.dims)
        name = tensor.name.partition("#")[0]  # a slice numbers the parts of one tensor
        if name in skipped or not (tensor.data_type in FLOATS or tensor.name in counted):
            continue
        total += size if size > 1 or constants is not None else 0
    return total


def _batch(model: onnx.ModelProto) -> int:
    """The number of inputs in one batch."""
    weights = {tensor.name for tensor in model.graph.initializer}
    dims = next((value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in weights), ())
    return max(dims[0].dim_value, 1) if dims else 1


def _counted(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """(name of the weight or of the node, operations of the whole batch) of each operator that is counted."""
    try:
        shapes = shapes_of(model)
    except Exception as problem:  # onnx raises errors of several types
        raise TraceError(
            "the operations of the network cannot be counted, because the sizes in its graph are contradictory "
            f"({one_line(problem, 120)})"
        ) from None
    weights = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in weights:
            weights[node.output[0]] = node.input[0]
        for inner in subgraphs(node):
            if hidden := [each.op_type for each in inner.node if each.op_type in COUNTERS]:
                where = f"'{node.name}' ({node.op_type})"
                raise TraceError(f"the operations of the graph cannot be counted: {where} decides whether {hidden[0]} runs")
        if node.op_type not in COUNTERS or node.domain not in ("", "ai.onnx"):
            continue
        try:
            count = COUNTERS[node.op_type](node, shapes)
        except KeyError as problem:
            raise TraceError(
                f"the operations of '{node.name}' ({node.op_type}) cannot be counted: the shape of {problem} is not known; "
                "it must not depend on the values of the input"
            ) from None
        yield next((weights[name] for name in node.input[1:2] + node.input[:1] if name in weights), node.name), count


def _conv(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each output value is a sum over the input channels of its group and the kernel."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _conv_transpose(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each input value is multiplied with the output channels of its group and the kernel."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _gemm(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if attribute_of(node, "transA", 0) else 1]


def _matmul(node: onnx.NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _recurrent(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Each step multiplies the input with one matrix and the state with another, for all gates and directions."""
    steps_and_batch = math.prod(shapes[node.input[0]][:2])
    return steps_and_batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


def _attention(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Queries times keys, and weights times values. (batch, heads, length, size) or (batch, length, heads x size)."""
    queries, keys, output = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    past = shapes[node.input[4]][2] if len(node.input) > 4 and node.input[4] else 0
    return (math.prod(queries) + math.prod(output)) * (keys[-2] + past)


def _einsum(node: onnx.NodeProto, shapes: Shapes) -> int:
    """The operands are multiplied from left to right. An index is summed when no later operand and not the output has it."""
    equation = next(attribute.s for attribute in node.attribute if attribute.name == "equation").decode().replace(" ", "")
    given, arrow, wanted = equation.partition("->")
    operands = [_indices(text, shapes[name]) for text, name in zip(given.split(","), node.input, strict=True)]
    letters = Counter(letter for operand in operands for letter in operand)
    output = set(wanted) if arrow else {letter for letter, times in letters.items() if times == 1}
    output |= {letter for letter in letters if letter.isdigit()}
    sizes: dict[str, int] = {}
    for operand in operands:
        sizes |= {letter: max(size, sizes.get(letter, 1)) for letter, size in operand.items()}
    total, current = 0, set(operands[0])
    for position, operand in enumerate(operands[1:], start=2):
        current |= set(operand)
        total += math.prod(sizes[letter] for letter in current)
        current &= output.union(*operands[position:])
    return total


def _indices(text: str, shape: Shape) -> dict[str, int]:
    """Index -> size. The axes of an ellipsis are called 0, 1, ..., from the last one on."""
    before, dots, after = text.partition("...")
    hidden = len(shape) - len(before) - len(after) if dots else 0
    names = [*before, *(str(number) for number in reversed(range(hidden))), *after]
    return dict(zip(names, shape, strict=True))


COUNTERS: dict[str, Callable[[onnx.NodeProto, Shapes], int]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DeformConv": _conv,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
    "RNN": _recurrent,
}
"""Operator -> its multiply-accumulate operations for the whole batch."""
