"""Rules of reductions, normalisations and softmax. A statistic over channels is taken over the channels that are left."""

from collections.abc import Sequence

import numpy as np

from pipeline.graph.labels.fields import Value, varying
from pipeline.graph.labels.rules_elementwise import merge
from pipeline.graph.labels.trace import Node, Trace, rule
from pipeline.graph.labels.unions import Labels

__all__ = [
    "along_an_axis",
    "batch_normalisation",
    "group_normalisation",
    "instance_normalisation",
    "layer_normalisation",
    "reduce",
]


@rule("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceMax", "ReduceMin")
def reduce(node: Node, trace: Trace) -> Sequence[Value]:
    """Labels along the reduced axes are gone after it. GroupNorm's (groups, channels / groups) loses the same of each group."""
    value, shape = trace.value(node.inputs[0]), node.shapes[0]
    rank = len(value.shape)
    axes = trace.integers(node, 1, "axes")
    if axes is None:
        axes = [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(rank))
    axes = [axis % rank for axis in axes]
    if value.initializer:
        value = trace.constant(value, axes, f"{node} takes a statistic of weights")
    touched = [labels for labels in value.fields if varying(labels) & set(axes)]
    kept = [labels for labels in value.fields if not varying(labels) & set(axes)]
    for labels in trace.resolved(Value(value.shape, tuple(touched))).fields:
        axis = next(iter(varying(labels)))
        if axis not in axes:
            kept.append(labels)
        else:
            trace.statistics[node.index, 0, axis] = labels.ravel()
    return [Value(shape, _over(kept, [] if node.attributes.get("keepdims", 1) else axes))]


def _over(fields: Sequence[Labels], axes: Sequence[int]) -> tuple[Labels, ...]:
    """`fields`, which do not differ along `axes`, without these axes."""
    gone = {axis % labels.ndim for labels in fields for axis in axes}
    return tuple(labels.reshape([size for axis, size in enumerate(labels.shape) if axis not in gone]) for labels in fields)


@rule(
    "Softmax",
    "LogSoftmax",
    "Hardmax",
    "ArgMax",
    "ArgMin",
    "TopK",
    "CumSum",
    "LogSumExp",
    "ReduceLogSumExp",
    "ReduceProd",
    "LRN",
    "Unique",
)
def along_an_axis(node: Node, trace: Trace) -> Sequence[Value]:
    """The positions of the axis depend on each other, so none of them can leave alone."""
    value = trace.value(node.inputs[0])
    default = 1 if node.op_type == "LRN" or (trace.opset < 13 and "oftmax" in node.op_type) else -1
    reduces = node.op_type.startswith("Reduce")
    axes = trace.integers(node, 1, "axes" if reduces else "axis") or (list(range(len(value.shape))) if reduces else [default])
    if node.op_type == "TopK":
        axes = [int(node.attributes.get("axis", -1))]
    if trace.opset < 13 and "oftmax" in node.op_type:
        axes = list(range(axes[0] % len(value.shape), len(value.shape)))
    value = trace.constant(value, axes, f"{node} mixes its channels")
    rank = len(value.shape)
    if any(len(shape) not in (rank, rank - len(axes)) for shape in node.shapes):
        trace.freeze(value, f"{node} mixes its channels")
        return [Value(shape) for shape in node.shapes]
    return [Value(shape, _over(value.fields, [] if len(shape) == rank else axes)) for shape in node.shapes]


@rule("BatchNormalization")
def batch_normalisation(node: Node, trace: Trace) -> Sequence[Value]:
    """Scale, bias, mean and variance belong to the channels of the input."""
    value = trace.value(node.inputs[0])
    vectors = [_on_axis(trace.value(name), 1, len(value.shape)) for name in node.inputs[1:5]]
    merged = merge([value, *vectors], value.shape, trace)
    return [merged, *(Value(shape) for shape in node.shapes[1:])]


@rule("InstanceNormalization")
def instance_normalisation(node: Node, trace: Trace) -> Sequence[Value]:
    """Each channel has its own statistics. GroupNorm is exported as this, with groups in place of channels.

    8 channels in 2 groups, (1, 2, 4 * height * width): the labels differ along the groups and inside each of them. They are made
    equal along the axis that has fewer, or, where groups leave whole, inside each group.
    """
    value = trace.value(node.inputs[0])
    in_groups = [labels for labels in value.fields if 1 in varying(labels) and len(varying(labels)) > 1]
    trace.in_groups += in_groups
    if trace.grouped == "whole" and in_groups:
        others = [labels for labels in value.fields if not any(labels is one for one in in_groups)]
        groups = trace.constant(Value(value.shape, tuple(in_groups)), range(2, len(value.shape)), "")
        value = Value(value.shape, (*others, *groups.fields))
    value = trace.resolved(value)
    for labels in value.fields:
        axis = next(iter(varying(labels)), 0)
        if axis > 1:
            trace.statistics[node.index, 0, axis] = labels.ravel()
    vectors = [_on_axis(trace.value(name), 1, len(value.shape)) for name in node.inputs[1:3]]
    return [merge([value, *vectors], value.shape, trace)]


@rule("GroupNormalization")
def group_normalisation(node: Node, trace: Trace) -> Sequence[Value]:
    """The same channels leave each group, or a group leaves whole.

    4 channels, 2 groups    c0 c1 | c2 c3    evenly c0=c2 c1=c3     whole c0=c1 c2=c3
    """
    value, groups = trace.value(node.inputs[0]), int(node.attributes["num_groups"])
    channels = trace.vector(value, 1, f"{node} needs the same channels in every part of its input")
    per_group = [name for name in node.inputs[1:3] if trace.value(name).shape[0] == groups != value.shape[1]]
    if channels is not None and groups > 1:
        trace.in_groups.append(channels)
    if channels is not None and trace.grouped == "whole" and groups > 1:
        each = channels.reshape(groups, -1)
        trace.unions.unite(each, each[:, :1])
        for name in per_group:
            trace.unions.unite(trace.value(name).fields[0], each[:, 0])
    elif channels is not None:
        each = channels.reshape(groups, -1)
        trace.unions.unite(each, each[:1])
        if each.shape[1] == 1:
            trace.unions.freeze(each, f"{node} has one channel in each group")
        trace.statistics[node.index, 0, 1] = channels
    vectors = [] if per_group else [_on_axis(trace.value(name), 1, len(value.shape)) for name in node.inputs[1:3]]
    return [merge([value, *vectors], value.shape, trace)]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization", "MeanVarianceNormalization")
def layer_normalisation(node: Node, trace: Trace) -> Sequence[Value]:
    """The statistics are taken over the channels that are left; scale and bias follow them."""
    value = trace.value(node.inputs[0])
    rank = len(value.shape)
    if node.op_type == "MeanVarianceNormalization":
        axes = [int(axis) % rank for axis in node.attributes.get("axes", [0, 2, 3])]
    elif node.op_type == "LpNormalization":
        axes = [int(node.attributes.get("axis", -1)) % rank]
    else:
        axes = list(range(int(node.attributes.get("axis", -1)) % rank, rank))
    value = trace.resolved(value)
    for labels in value.fields:
        axis = next(iter(varying(labels)), -1)
        if axis in axes:
            trace.statistics[node.index, 0, axis] = labels.ravel()
    merged = merge([value, *(trace.value(name) for name in node.inputs[1:3] if name)], value.shape, trace)
    return [merged, *(Value(shape) for shape in node.shapes[1:])]


def _on_axis(value: Value, axis: int, rank: int) -> Value:
    """A vector, placed along `axis` of a value with `rank` axes."""
    place = [1] * rank
    place[axis] = int(np.prod(value.shape))
    fields: tuple[Labels, ...] = tuple(labels.reshape(place) for labels in value.fields if labels.size > 1)
    return Value(tuple(place), fields, value.initializer)
