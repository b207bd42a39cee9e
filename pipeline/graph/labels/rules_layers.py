"""Rules of layers with weights. A layer reads the channels of its input and makes new ones.

x (1, C, H, W)           labels  c0 c1 c2
weight (O, C, k, k)      axis 0  o0 o1      axis 1  c0 c1 c2
Conv(x, weight)          labels  o0 o1
"""

from collections.abc import Sequence

import numpy as np

from pipeline.graph.labels.fields import Value, along, varying
from pipeline.graph.labels.rules_elementwise import merge
from pipeline.graph.labels.trace import Node, Trace, rule
from pipeline.graph.labels.unions import Labels

__all__ = ["convolution", "einsum", "gemm", "matmul", "recurrent"]


@rule("Conv", "ConvTranspose")
def convolution(node: Node, trace: Trace) -> Sequence[Value]:
    """Plain, grouped and depthwise convolutions. A grouped one loses the same channels of each group, or whole groups."""
    x, weight, shape = trace.value(node.inputs[0]), node.inputs[1], node.shapes[0]
    x = trace.constant(x, _slides(node, trace, x), f"{node} slides over its channels")
    groups = int(node.attributes.get("group", 1))
    if not trace.is_weight(weight):
        trace.freeze(x, f"the weights of {node} are computed from the input")
        trace.freeze(trace.value(weight), f"its channels are the weights of {node}")
        return [Value(shape)]
    reads, makes = (0, 1) if node.op_type == "ConvTranspose" else (1, 0)
    channels = trace.vector(x, 1, f"{node} needs the same channels in every part of its input")
    depthwise = groups == x.shape[1]
    if groups > 1 and (depthwise or trace.grouped == "whole"):
        outputs, makes = _whole_groups(node, trace, channels, groups), 0
    else:
        outputs = _read(node, trace, channels, groups, (weight, reads, makes))
    if groups > 1 and not depthwise:
        trace.in_groups += [outputs] if channels is None else [channels, outputs]
    trace.producers.setdefault((weight, makes), node.index)
    if len(node.inputs) > 2 and node.inputs[2]:
        _follow(trace, node.inputs[2], outputs)
    return [_made(shape, 1, outputs, [labels for labels in x.fields if labels.shape[1] == 1])]


def _slides(node: Node, trace: Trace, x: Value) -> list[int]:
    """The axes along which a convolution mixes or skips positions: all but those with kernel 1, stride 1 and no padding."""
    axes = range(2, len(x.shape))
    kernel = trace.constants[node.inputs[1]].shape[2:] if trace.is_weight(node.inputs[1]) else [0] * len(axes)
    strides = node.attributes.get("strides", [1] * len(axes))
    pads = node.attributes.get("pads", [0] * 2 * len(axes))
    if node.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return list(axes)
    still = [kernel[i] == strides[i] == 1 and not pads[i] and not pads[i + len(axes)] for i in range(len(axes))]
    return [axis for axis, stays in zip(axes, still, strict=True) if not stays]


def _read(node: Node, trace: Trace, channels: Labels | None, groups: int, place: tuple[str, int, int]) -> Labels:
    """Unite the input's channels with the weight's input axis, and return the labels of all outputs."""
    weight, reads, makes = place
    trace.consumers.add((weight, reads))
    read, made = trace.axis(weight, reads), trace.axis(weight, makes)
    over_inputs, over_outputs = (groups, 1) if node.op_type == "ConvTranspose" else (1, groups)
    if channels is None:
        trace.unions.freeze(read, f"the inputs of {node} keep their width")
    else:
        spread = channels.reshape(groups, -1)
        trace.unions.unite(read.reshape(over_inputs, -1), spread)
        trace.unions.unite(spread, spread[:1])
    outputs = made.reshape(over_outputs, -1)
    trace.unions.unite(outputs, outputs[:1])
    return np.tile(made, groups) if over_inputs > 1 else made


def _whole_groups(node: Node, trace: Trace, channels: Labels | None, groups: int) -> Labels:
    """The outputs of a convolution whose groups leave whole, with their inputs. A group of a depthwise one is one channel.

    x       c0 c1 | c2 c3       2 groups, 6 outputs     c0=c1 c2=c3
    output  c0 c0 c0 c2 c2 c2
    """
    weight, transposed = node.inputs[1], node.op_type == "ConvTranspose"
    shape = trace.constants[weight].shape
    each = shape[1] if transposed else shape[0] // groups
    first = trace.axis(weight, 0).reshape(groups, -1)
    trace.unions.unite(first, first[:, :1])
    if channels is None:
        trace.unions.freeze(first, f"the inputs of {node} keep their width")
        return np.repeat(first[:, 0], each)
    inputs = channels.reshape(groups, -1)
    trace.unions.unite(inputs, first[:, :1])
    return np.repeat(inputs[:, 0], each)


@rule("Gemm")
def gemm(node: Node, trace: Trace) -> Sequence[Value]:
    """A linear layer over a matrix."""
    x, weight = trace.value(node.inputs[0]), node.inputs[1]
    if not trace.is_weight(weight) or node.attributes.get("transA", 0):
        for name in node.inputs:
            trace.freeze(
                trace.value(name), f"its channels pass through {node}, a product of two matrices that depend on the input"
            )
        return [Value(node.shapes[0])]
    reads, makes = (1, 0) if node.attributes.get("transB", 0) else (0, 1)
    result = _linear(node, trace, x, (weight, reads, makes))
    return [merge([result, trace.value(node.inputs[2])], node.shapes[0], trace)] if len(node.inputs) > 2 else [result]


@rule("MatMul")
def matmul(node: Node, trace: Trace) -> Sequence[Value]:
    """A linear layer, where one side is a weight; otherwise a product of two activations, as in attention."""
    one, other = (trace.value(name) for name in node.inputs)
    if trace.is_weight(node.inputs[1]) and len(other.shape) == 2 and len(one.shape) > 1:
        return [_linear(node, trace, one, (node.inputs[1], 0, 1))]
    if trace.is_weight(node.inputs[0]) and len(one.shape) == 2 and len(other.shape) > 1:
        return [_linear(node, trace, other, (node.inputs[0], 1, 0), axis=len(other.shape) - 2)]
    if min(len(one.shape), len(other.shape)) < 2:
        for value in (one, other):
            trace.freeze(value, f"its channels pass through {node}, a product with a vector")
        return [Value(node.shapes[0])]
    return [_product(node, trace, one, other)]


def _linear(node: Node, trace: Trace, x: Value, place: tuple[str, int, int], axis: int = -1) -> Value:
    weight, reads, makes = place
    trace.consumers.add((weight, reads))
    axis %= len(x.shape)
    channels = trace.vector(x, axis, f"{node} needs the same channels in every part of its input")
    if channels is None:
        trace.unions.freeze(trace.axis(weight, reads), f"the inputs of {node} keep their width")
    else:
        trace.unions.unite(trace.axis(weight, reads), channels)
    trace.producers.setdefault((weight, makes), node.index)
    kept = [labels for labels in x.fields if labels.shape[axis] == 1]
    return _made(node.shapes[0], axis, trace.axis(weight, makes), kept)


def _product(node: Node, trace: Trace, one: Value, other: Value) -> Value:
    """A product of two activations, (..., m, k) x (..., k, n). Heads, which are batch axes, leave whole.

    q (1, heads, tokens, d)     labels differ along heads and d: all d of a head are united
    k (1, heads, d, tokens)
    scores (1, heads, tokens, tokens)   labels along heads
    """
    shape = node.shapes[0]
    rank = len(shape)
    sides = []
    for value in (one, other):
        lead = (1,) * (rank - len(value.shape))
        sides.append(Value(lead + value.shape, tuple(labels.reshape(lead + labels.shape) for labels in value.fields)))
    batch = set(range(rank - 2))
    whole: list[list[Labels]] = [[], []]
    for number, (side, found) in enumerate(zip(sides, whole, strict=True)):
        summed = rank - 1 if number == 0 else rank - 2
        others: list[Labels] = []
        for labels in side.fields:
            if varying(labels) & batch:
                united = trace.constant(Value(side.shape, (labels,)), [rank - 2, rank - 1], "")
                found.extend(united.fields)
            else:  # heads among the rows or columns leave whole too
                inside = {summed} if len(varying(labels)) > 1 else set()
                others.extend(trace.constant(Value(side.shape, (labels,)), inside, "").fields)
        sides[number] = Value(side.shape, tuple(others))
    heads = merge([Value((*side.shape[:-2], 1, 1), tuple(found)) for side, found in zip(sides, whole, strict=True)], shape, trace)
    fields = list(heads.fields)
    rows = [labels for labels in sides[0].fields if varying(labels) == {rank - 2}]
    columns = [labels for labels in sides[1].fields if varying(labels) == {rank - 1}]
    left = [along(labels, rank - 1) for labels in sides[0].fields if varying(labels) == {rank - 1}]
    right = [along(labels, rank - 2) for labels in sides[1].fields if varying(labels) == {rank - 2}]
    if left and right:
        for labels in (*left[1:], *right):
            trace.unions.unite(left[0], labels)
        trace.statistics[node.index, 0, len(one.shape) - 1] = left[0]
        trace.statistics[node.index, 1, len(other.shape) - 2] = left[0]
    elif sides[0].shape[-1] > 1:
        for labels in (*left, *right):
            trace.unions.freeze(labels, f"{node} multiplies its channels with a tensor that keeps its width")
    return Value(shape, (*fields, *rows, *columns))


@rule("LSTM", "GRU", "RNN")
def recurrent(node: Node, trace: Trace) -> Sequence[Value]:
    """A recurrent layer reads channels, (time, batch, channels). Its own units keep their number."""
    x, weight = trace.value(node.inputs[0]), node.inputs[1]
    x = trace.constant(x, [0, 1], f"its channels are the time steps of {node}")
    channels = trace.vector(x, 2, f"{node} needs the same channels in every part of its input")
    if trace.is_weight(weight):
        trace.consumers.add((weight, 2))
        if channels is None:
            trace.unions.freeze(trace.axis(weight, 2), f"the inputs of {node} keep their width")
        else:
            trace.unions.unite(trace.axis(weight, 2), channels)
        trace.producers.setdefault((weight, 1), node.index)
        trace.unions.freeze(trace.axis(weight, 1), f"the units of {node} keep their number")
    elif channels is not None:
        trace.unions.freeze(channels, f"the weights of {node} are computed from the input")
    for name in node.inputs[2:]:
        trace.freeze(trace.value(name), f"the units of {node} keep their number")
    return [Value(shape) for shape in node.shapes]


@rule("Einsum")
def einsum(node: Node, trace: Trace) -> Sequence[Value]:
    """Labels of the same letter are united. Letters that all operands and the result have are batch axes, as in `_product`.
    Heads of an operand along a letter of the result leave whole.
    """
    left, _, out = str(node.attributes["equation"]).replace(" ", "").partition("->")
    terms = left.split(",")
    values = [trace.value(name) for name in node.inputs]
    if not out or "." in left or any(len(set(term)) != len(term) for term in (*terms, out)):
        for value in values:
            trace.freeze(value, f"its channels pass through {node}, whose equation is not one that labels can follow")
        return [Value(node.shapes[0])]
    letters: dict[str, list[Labels]] = {}
    for term, value, name in zip(terms, values, node.inputs, strict=True):
        shared = {letter for letter in term if letter in out and all(letter in other for other in terms)}
        for labels in value.fields:
            axes = varying(labels)
            batch = {axis for axis in axes if term[axis] in shared} or {axis for axis in axes if term[axis] in out}
            resolved = trace.constant(Value(value.shape, (labels,)), axes - batch, "") if batch and batch != axes else None
            for one in resolved.fields if resolved else trace.resolved(Value(value.shape, (labels,))).fields:
                axis = next(iter(varying(one)))
                letters.setdefault(term[axis], []).append(along(one, axis))
        for axis, letter in enumerate(term):
            others = [other for other in terms if letter in other]
            if value.shape[axis] > 1 and not value.on(axis) and len(others) > 1:
                letters.setdefault(letter, []).append(np.zeros(value.shape[axis], dtype=np.int64))
            if trace.is_weight(name) and letter in out and len(others) == 1:
                trace.producers.setdefault((name, axis), node.index)
            elif trace.is_weight(name) and letter not in out:
                trace.consumers.add((name, axis))
    fields = []
    for letter, found in letters.items():
        for labels in found[1:]:
            trace.unions.unite(found[0], labels, f"its channels meet a tensor that keeps its width at {node}")
        readers = [position for position, term in enumerate(terms) if letter in term]
        if letter not in out and not any(trace.is_weight(node.inputs[position]) for position in readers):
            for position in readers:
                trace.statistics[node.index, position, terms[position].index(letter)] = found[0]
        if letter in out:
            place = [1] * len(out)
            place[out.index(letter)] = len(found[0])
            fields.append(found[0].reshape(place))
    return [Value(node.shapes[0], tuple(fields))]


def _follow(trace: Trace, initializer: str, outputs: Labels) -> None:
    if trace.is_weight(initializer):
        trace.unions.unite(trace.axis(initializer, 0), outputs)
    else:
        trace.unions.freeze(outputs, f"a bias is computed from the input{trace.at}")


def _made(shape: tuple[int, ...], axis: int, outputs: Labels, others: Sequence[Labels]) -> Value:
    """The output of a layer: `outputs` along `axis`, and the fields of the input that differ along other axes."""
    place = [1] * len(shape)
    place[axis] = len(outputs)
    made = (outputs.reshape(place),) if len(outputs) > 1 else ()
    return Value(shape, (*others, *made))
