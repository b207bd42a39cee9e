"""Rules of operations that move data. They are run on the labels by onnx's reference evaluator.

So no index arithmetic is written twice, and any mixture of these operations is right.

x (1, 4, H, W)       labels  c0 c1 c2 c3
Reshape (1, 2, 2, H, W)      [c0 c1] [c2 c3]
Transpose, Reshape           c0 c2 c1 c3
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from pipeline.graph.labels.fields import Value, compact, varying
from pipeline.graph.labels.rules_elementwise import merge
from pipeline.graph.labels.trace import Node, Trace, rule
from pipeline.graph.labels.unions import FIXED, Labels

__all__ = ["concat", "expand", "gather", "move", "pad"]


@rule(
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "DepthToSpace",
    "SpaceToDepth",
    "Split",
    "Slice",
    "Tile",
    "GatherND",
)
def move(node: Node, trace: Trace) -> Sequence[Value]:
    """The output's labels are the input's labels, moved in the same way."""
    value = trace.value(node.inputs[0])
    parameters = [trace.constants.get(name) if name else None for name in node.inputs[1:]]
    if any(name and found is None for name, found in zip(node.inputs[1:], parameters, strict=True)):
        trace.freeze(value, f"its channels pass through {node}, which depends on the values of the input")
        return [Value(shape) for shape in node.shapes]
    if node.op_type == "Slice":
        value = _in_steps(node, trace, value)
    fields: list[list[Labels]] = [[] for _ in node.outputs]
    for labels in value.fields:
        for kept, moved in zip(fields, _run(node, trace, np.broadcast_to(labels, value.shape)), strict=True):
            kept.append(moved)
            _keep_last(node, moved, trace)
    made = [_value(shape, found, trace) for shape, found in zip(node.shapes, fields, strict=True)]
    if node.op_type == "DepthToSpace":  # a channel of the output is whole; rows and columns of a picture stay
        return [trace.constant(made[0], [2, 3], f"{node} makes one channel of its channels")]
    return made


def _in_steps(node: Node, trace: Trace, value: Value) -> Value:
    """Make `value` equal along each axis of which a Slice takes only some positions, in steps. After some of them are removed, no
    start and end give the rest. A Gather does: see `pipeline.graph.gather_steps`.

    x              c0 c1 c2 c3 c4 c5
    Slice, step 2  c0    c2    c4
    x without c1   c0 c2 c3 c4 c5       c0, c2 and c4 stand at 0, 1 and 3
    """
    starts, ends = trace.integers(node, 1, "starts") or [], trace.integers(node, 2, "ends") or []
    axes = trace.integers(node, 3, "axes") or list(range(len(starts)))
    steps = trace.integers(node, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = value.shape[axis]
        if step != 1 and len(range(*slice(start, end, step).indices(size))) < size:
            if value.on(axis):
                trace.in_steps.add((node.name, axis % len(value.shape)))
            value = trace.constant(value, [axis], f"{node} takes its channels in steps of {step}")
    return value


def _keep_last(node: Node, moved: Labels, trace: Trace) -> None:
    """Freeze the label of a value that has only one, as the value would be empty without it.

    gates (1, 3, H, W)              g0 g1 g2
    Slice 1:2 -> (1, 1, H, W)       g1, which must stay
    """
    if node.op_type in ("Slice", "Split", "Gather", "GatherND"):
        label = compact(moved, trace.unions)
        if label.size == 1:
            trace.unions.freeze(label, f"one of its channels is used alone at {node}")


@rule("Gather")
def gather(node: Node, trace: Trace) -> Sequence[Value]:
    """With constant indices the labels are gathered. An embedding, whose indices are the input, gives the labels of its table."""
    value, axis = (
        trace.value(node.inputs[0]),
        int(node.attributes.get("axis", 0)) % max(len(trace.value(node.inputs[0]).shape), 1),
    )
    if node.inputs[1] in trace.constants:
        return move_gather(node, trace, value)
    indices = trace.value(node.inputs[1])
    trace.freeze(indices, f"its channels are indices in {node}")
    value = trace.constant(value, [axis], f"its channels are looked up in {node} by values of the input")
    rank = len(indices.shape)
    fields = [
        labels.reshape(labels.shape[:axis] + (1,) * rank + labels.shape[axis + 1 :])
        for labels in value.fields
        if axis not in varying(labels)
    ]
    return [_value(node.shapes[0], fields, trace)]


def move_gather(node: Node, trace: Trace, value: Value) -> Sequence[Value]:
    """Gather with constant indices."""
    axis = int(node.attributes.get("axis", 0))
    indices = trace.constants[node.inputs[1]]
    fields = [np.take(np.broadcast_to(labels, value.shape), indices, axis=axis) for labels in value.fields]
    for moved in fields:
        _keep_last(node, moved, trace)
    return [_value(node.shapes[0], fields, trace)]


@rule("Concat")
def concat(node: Node, trace: Trace) -> Sequence[Value]:
    """Along the axis the labels stand one after the other; along other axes the labels of all inputs are united.

    a (1, 2, H, W)  a0 a1
    b (1, 3, H, W)  b0 b1 b2
    concat, axis 1  a0 a1 b0 b1 b2
    """
    shape = node.shapes[0]
    axis = int(node.attributes["axis"]) % len(shape)
    values = [trace.value(name) for name in node.inputs]
    across = [Value(value.shape, tuple(one for one in value.fields if one.shape[axis] == 1)) for value in values]
    lengths = [(*value.shape[:axis], 1, *value.shape[axis + 1 :]) for value in values]
    united = merge([Value(length, value.fields) for length, value in zip(lengths, across, strict=True)], lengths[0], trace)
    fields: list[Labels] = [one for one in united.fields if one.size > 1]
    inside = [_single(value, axis, trace, str(node)) for value in values]
    if any(labels is not None for labels in inside):
        full = [
            np.full(value.shape, FIXED) if labels is None else np.broadcast_to(labels, value.shape)
            for value, labels in zip(values, inside, strict=True)
        ]
        fields.append(np.concatenate(full, axis))
    return [_value(shape, fields, trace)]


def _single(value: Value, axis: int, trace: Trace, where: str) -> Labels | None:
    found = trace.one_kind(trace.movable(value, axis), where)
    return found[0] if found else None


@rule("Expand")
def expand(node: Node, trace: Trace) -> Sequence[Value]:
    """A repeated position may leave with what it meets later: it gets a new label."""
    value, shape = trace.value(node.inputs[0]), node.shapes[0]
    size = (1,) * (len(shape) - len(value.shape)) + value.shape
    fields = [labels.reshape((1,) * (len(shape) - labels.ndim) + labels.shape) for labels in value.fields]
    for axis in range(1, len(shape)):
        if size[axis] == 1 < shape[axis]:
            place = [1] * len(shape)
            place[axis] = shape[axis]
            fields.append(trace.unions.new(shape[axis]).reshape(place))
    return [Value(shape, tuple(fields))]


@rule("Pad")
def pad(node: Node, trace: Trace) -> Sequence[Value]:
    """Channels of padding get new labels, so that they may leave with the channels that they are added to.

    x (1, 2, H, W)              x0 x1
    Pad one before, one after   n0 x0 x1 n1
    """
    value, shape = trace.value(node.inputs[0]), node.shapes[0]
    pads = trace.integers(node, 1, "pads")
    axes = trace.integers(node, 3)
    if pads is None:
        trace.freeze(value, f"its channels pass through {node}, whose width depends on the values of the input")
        return [Value(shape)]
    rank = len(value.shape)
    chosen = [axis % rank for axis in axes] if axes else list(range(rank))
    widths = {axis: (pads[i], pads[i + len(chosen)]) for i, axis in enumerate(chosen)}
    if node.attributes.get("mode", "constant") != "constant":
        value = trace.constant(value, [a for a, w in widths.items() if any(w)], f"its channels are mirrored by {node}")
    fields = []
    for axis, (before, after) in widths.items():
        if (before or after) and not value.on(axis) and axis == 1 and min(before, after) >= 0:
            place = [1] * rank
            place[axis] = shape[axis]
            labels = np.concatenate([trace.unions.new(before), np.full(value.shape[axis], FIXED), trace.unions.new(after)])
            fields.append(labels.reshape(place))
    for labels in value.fields:
        width = [widths.get(axis, (0, 0)) if labels.shape[axis] > 1 else (0, 0) for axis in range(rank)]
        if any(number < 0 for pair in width for number in pair):
            trace.unions.freeze(labels, f"its channels are cut off by {node}")
            continue
        padded = np.pad(labels, width, constant_values=FIXED)
        if padded.shape != labels.shape:
            new = np.pad(np.zeros(labels.shape, dtype=bool), width, constant_values=True)
            padded[new] = trace.unions.new(int(new.sum()))
        fields.append(padded)
    return [_value(shape, fields, trace)]


def _run(node: Node, trace: Trace, labels: Labels) -> list[Labels]:
    inputs = {"data": labels}
    names = ["data"]
    for number, name in enumerate(node.inputs[1:]):
        names.append(f"p{number}" if name else "")
        if name:
            inputs[f"p{number}"] = trace.constants[name]
    outputs = [f"o{number}" for number in range(len(node.outputs))]
    proto = onnx.helper.make_node(node.op_type, names, outputs, **node.attributes)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [proto],
            "move",
            [
                onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
                for name, array in inputs.items()
            ],
            [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in outputs],
        ),
        opset_imports=[onnx.helper.make_opsetid("", trace.opset)],
    )
    return [np.asarray(found) for found in ReferenceEvaluator(model).run(None, inputs)]


def _value(shape: tuple[int, ...], fields: Sequence[Labels], trace: Trace) -> Value:
    """The value with `fields`, each without the axes along which it does not differ."""
    small = (compact(labels, trace.unions) for labels in fields)
    return Value(shape, tuple(labels for labels in small if labels.size > 1))
