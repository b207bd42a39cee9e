"""Follow: how the integer constants of a graph change when channels leave, as counts of the positions that stay."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.graph.labels.fields import Value, along
from pipeline.graph.labels.trace import Node, Trace
from pipeline.graph.labels.unions import Labels

__all__ = ["Count", "Follower", "Places", "followers"]


@dataclass(frozen=True, eq=False)
class Count:
    """A number that is `fixed`, or, where there are labels, the number of positions of which all labels stay."""

    fixed: int
    labels: tuple[Labels, ...] = ()

    def value(self, stays: NDArray[np.bool_]) -> int:
        """The number, where `stays[label]` says whether a label stays."""
        return int(np.logical_and.reduce([stays[labels] for labels in self.labels]).sum()) if self.labels else self.fixed


@dataclass(frozen=True, eq=False)
class Places:
    """Indices of a Gather. They become the new places of the positions that stay; the indices of the others are left out."""

    indices: NDArray[np.int64]
    source: tuple[Labels, ...]
    """The labels of the axis that is indexed."""
    axes: tuple[tuple[Labels, ...], ...]
    """The labels along each axis of `indices`; an axis without labels keeps all its entries."""

    def values(self, stays: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The new indices, where `stays[label]` says whether a label stays."""
        new = np.arange(int(self.indices.max(initial=0)) + 1)
        if self.source:
            new = np.cumsum(np.logical_and.reduce([stays[labels] for labels in self.source])) - 1
        found = new[self.indices]
        for axis, labels in enumerate(self.axes):
            if labels:
                found = np.compress(np.logical_and.reduce([stays[part] for part in labels]), found, axis)
        return np.asarray(found, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Follower:
    """Constants of one node that follow the plan. The key is the name of the input or of the attribute, for example 'shape'."""

    node: str
    key: str
    terms: tuple[Count, ...] | Places

    def values(self, stays: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The constants when the labels of `stays` stay."""
        if isinstance(self.terms, Places):
            return self.terms.values(stays)
        return np.asarray([term.value(stays) for term in self.terms], dtype=np.int64)


def followers(trace: Trace, nodes: Sequence[Node]) -> Iterator[Follower]:
    """Yield the constants that follow, for every node that has some."""
    for node in nodes:
        make = _MAKERS.get(node.op_type)
        if make:
            yield from make(node, trace)


Maker = Callable[[Node, Trace], Iterator[Follower]]


def _dimensions(key: str) -> Maker:
    def make(node: Node, trace: Trace) -> Iterator[Follower]:
        value = trace.values[node.outputs[0]]
        if value.fields:
            yield Follower(node.name, key, tuple(_size(value, axis) for axis in range(len(value.shape))))

    return make


def _size(value: Value, axis: int) -> Count:
    return Count(value.shape[axis], _labels(value, axis))


def _labels(value: Value, axis: int) -> tuple[Labels, ...]:
    return tuple(along(labels, axis) for labels in value.on(axis))


def _split(node: Node, trace: Trace) -> Iterator[Follower]:
    axis = int(node.attributes.get("axis", 0))
    values = [trace.values[name] for name in node.outputs]
    axis %= len(values[0].shape)
    if any(value.on(axis) for value in values):
        yield Follower(node.name, "split", tuple(_size(value, axis) for value in values))


def _slice(node: Node, trace: Trace) -> Iterator[Follower]:
    value = trace.value(node.inputs[0])
    starts, ends = trace.integers(node, 1, "starts") or [], trace.integers(node, 2, "ends") or []
    axes = trace.integers(node, 3, "axes") or list(range(len(starts)))
    steps = trace.integers(node, 4) or [1] * len(starts)
    if not any(value.on(axis % len(value.shape)) for axis in axes):
        return
    first: list[Count] = []
    last: list[Count] = []
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = given % len(value.shape)
        labels, size = _labels(value, axis), value.shape[axis]
        begin, stop, _ = slice(start, end, step).indices(size)
        whole = len(range(begin, stop, step)) == size
        if not labels or whole:
            first.append(Count(start))
            last.append(Count(end))
        else:
            first.append(Count(0, tuple(part[:begin] for part in labels)))
            last.append(Count(0, tuple(part[:stop] for part in labels)))
    yield Follower(node.name, "starts", tuple(first))
    yield Follower(node.name, "ends", tuple(last))


def _gather(node: Node, trace: Trace) -> Iterator[Follower]:
    value, made = trace.value(node.inputs[0]), trace.values[node.outputs[0]]
    axis = int(node.attributes.get("axis", 0)) % max(len(value.shape), 1)
    indices = trace.constants.get(node.inputs[1])
    if value.on(axis) and indices is not None:
        axes = tuple(_labels(made, axis + number) for number in range(indices.ndim))
        yield Follower(node.name, "indices", Places(indices % value.shape[axis], _labels(value, axis), axes))


def _pad(node: Node, trace: Trace) -> Iterator[Follower]:
    before, after = trace.value(node.inputs[0]), trace.values[node.outputs[0]]
    pads = trace.integers(node, 1, "pads") or []
    axes = trace.integers(node, 3)
    rank = len(before.shape)
    chosen = [axis % rank for axis in axes] if axes else list(range(rank))
    if not any(after.on(axis) for axis in chosen):
        return
    first: list[Count] = []
    last: list[Count] = []
    for number, axis in enumerate(chosen):
        labels, head, tail = _labels(after, axis), pads[number], pads[number + len(chosen)]
        if not labels or head < 0 or tail < 0:
            first.append(Count(head))
            last.append(Count(tail))
        else:
            first.append(Count(0, tuple(part[:head] for part in labels)))
            last.append(Count(0, tuple(part[len(part) - tail :] for part in labels)))
    yield Follower(node.name, "pads", (*first, *last))


def _resize(node: Node, trace: Trace) -> Iterator[Follower]:
    value = trace.values[node.outputs[0]]
    if len(node.inputs) > 3 and node.inputs[3] and value.fields:
        axes = [int(axis) % len(value.shape) for axis in node.attributes.get("axes", range(len(value.shape)))]
        sizes = trace.integers(node, 3) or []
        terms = (_size(value, axis) if value.on(axis) else Count(size) for axis, size in zip(axes, sizes, strict=True))
        yield Follower(node.name, "sizes", tuple(terms))


def _convolution(node: Node, trace: Trace) -> Iterator[Follower]:
    """The `group` of a depthwise convolution is its number of inputs. That of a grouped one falls if whole groups leave."""
    value, groups = trace.value(node.inputs[0]), int(node.attributes.get("group", 1))
    if groups == value.shape[1] or trace.grouped == "whole":
        yield from _groups(node, "group", value, groups)


def _group_norm(node: Node, trace: Trace) -> Iterator[Follower]:
    if trace.grouped == "whole":
        yield from _groups(node, "num_groups", trace.value(node.inputs[0]), int(node.attributes["num_groups"]))


def _groups(node: Node, key: str, value: Value, groups: int) -> Iterator[Follower]:
    """A number of groups, whose channels have one label in each of them: the first channel of each group is counted."""
    if groups > 1 and value.on(1):
        yield Follower(node.name, key, (Count(groups, tuple(part[:: len(part) // groups] for part in _labels(value, 1))),))


_MAKERS: Mapping[str, Maker] = {
    "Reshape": _dimensions("shape"),
    "Expand": _dimensions("shape"),
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "GroupNormalization": _group_norm,
}
