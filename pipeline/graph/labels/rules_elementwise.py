"""Rules of operations that work on each position alone. The labels that meet are united.

a (1, C, H, W)   labels  c0 c1 c2
b (1, C, 1, 1)   labels  d0 d1 d2
a + b                    c0=d0 c1=d1 c2=d2
"""

from collections.abc import Sequence

import numpy as np

from pipeline.graph.labels.fields import Value, compact, constant_along, overlapping, resolve, varying
from pipeline.graph.labels.trace import Node, Trace, rule
from pipeline.graph.labels.unions import Labels

__all__ = ["merge"]

UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "DequantizeLinear",
    "QuantizeLinear",
]
BINARY = [
    "Add",
    "And",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]


@rule(*UNARY)
def pass_through(node: Node, trace: Trace) -> Sequence[Value]:
    """The output has the labels of the first input."""
    value = trace.value(node.inputs[0])
    return [Value(shape, value.fields if shape == value.shape else ()) for shape in node.shapes]


@rule(*BINARY)
def elementwise(node: Node, trace: Trace) -> Sequence[Value]:
    """The labels of the inputs are united position by position."""
    return [merge([trace.value(name) for name in node.inputs if name], node.shapes[0], trace)]


def merge(values: Sequence[Value], shape: tuple[int, ...], trace: Trace) -> Value:
    """Unite the labels of `values`, which are broadcast to `shape`, and return the value that has them all.

    A tensor that has length 1 on an axis does not mind which positions of that axis leave. A tensor of full length without labels
    keeps its width, so the labels that it meets are frozen.
    """
    rank = len(shape)
    sizes = [(1,) * (rank - len(value.shape)) + value.shape for value in values]
    parts = [[labels.reshape((1,) * (rank - labels.ndim) + labels.shape) for labels in value.fields] for value in values]
    fields = [labels for found in parts for labels in _apart(found, trace)]
    while pair := overlapping(fields):
        one, other = sorted((fields[number] for number in pair), key=lambda labels: -len(varying(labels)))
        fields = [labels for number, labels in enumerate(fields) if number not in pair]
        if varying(other) < varying(one):
            one = _single(one, other, parts, trace)
            if not varying(one) & varying(other):
                fields += [one, other]
                continue
        trace.unions.unite(one, other)
        united = compact(np.broadcast_arrays(one, other)[0].copy(), trace.unions)
        fields += [united] if united.size > 1 else []
    kept = []
    for labels in fields:
        for size, found in zip(sizes, parts, strict=True):
            met = {axis for axis in varying(labels) if size[axis] > 1}
            known = {axis for part in found for axis in varying(compact(part, trace.unions))}
            if met - known:
                left = constant_along(labels, met - known, trace.unions, trace.unions.fixed_reason)
                if left is None:  # a field that cannot be removed would freeze other fields that share an axis with it later
                    break
                labels = left  # noqa: PLW2901
        else:
            kept.append(labels)
    return Value(shape, tuple(compact(labels, trace.unions) for labels in kept))


def _apart(found: list[Labels], trace: Trace) -> list[Labels]:
    """The fields of one value that differ, with one kind of channels for each axis."""
    fields: list[Labels] = []
    kinds: dict[int, list[Labels]] = {}
    for labels in (compact(part, trace.unions) for part in found):
        axes = varying(labels)
        if len(axes) == 1:
            kinds.setdefault(next(iter(axes)), []).append(labels)
        elif axes:
            fields.append(labels)
    for several in kinds.values():
        movable = [labels for labels in several if not trace.unions.frozen(labels).all()]
        fields += trace.one_kind(movable, trace.at.removeprefix(" at ")) if movable else several[:1]
    return fields


def _single(one: Labels, other: Labels, parts: list[list[Labels]], trace: Trace) -> Labels:
    """`one`, which differs along several axes, made to differ along one axis where it meets weights that differ along fewer axes.

    q (1, heads, 1, d) x scale (1, 1, 1, d): heads can still leave, because the scale is the same for all of them. Channels that a
    layer makes, as in the scales of squeeze-excite, are united position by position instead.
    """
    if any(
        varying(one) <= {axis for part in found for axis in varying(part)} and any(part.shape == other.shape for part in found)
        for found in parts
        if len(found) > 1
    ):
        return resolve(one, trace.unions)
    made = [trace.axes[place] for place in trace.producers if place in trace.axes]
    if made and np.isin(trace.unions.find(other), trace.unions.find(np.concatenate(made))).any():
        return one
    return resolve(one, trace.unions, tuple(varying(other)))
