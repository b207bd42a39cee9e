"""Trace: what is known while labels are pushed through a graph, and the table of rules."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.graph.labels.fields import Value, along, constant_along, resolve, varying
from pipeline.graph.labels.unions import Labels, Unions

__all__ = ["RULES", "Grouped", "Node", "Rule", "Trace", "rule"]

Grouped = Literal["evenly", "whole"]
"""How channels leave a grouped layer: the same channels of each group, or a whole group with its inputs and outputs."""


@dataclass(frozen=True)
class Node:
    """One node of the graph, with what the rules ask for."""

    index: int
    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each output."""
    place: str
    """Where the node is in the user's network, in words; see `pipeline.graph.module_names`."""

    def __str__(self) -> str:
        return self.place


@dataclass
class Trace:
    """The labels of a graph while the rules run. `opset` is the graph's."""

    opset: int
    constants: dict[str, NDArray[Any]]
    grouped: Grouped = "evenly"
    values: dict[str, Value] = field(default_factory=dict)
    unions: Unions = field(default_factory=Unions)
    axes: dict[tuple[str, int], Labels] = field(default_factory=dict)
    """(initializer, axis) -> the labels of its positions. An axis without an entry has no labels."""
    producers: dict[tuple[str, int], int] = field(default_factory=dict)
    """(weight, output axis) -> index of the first node that computes its outputs."""
    consumers: set[tuple[str, int]] = field(default_factory=set)
    """(weight, input axis) of every layer that reads channels."""
    statistics: dict[tuple[int, int, int], Labels] = field(default_factory=dict)
    """(node, position of an input, axis of it) -> labels: a mean, a product or another sum over channels, which is taken over
    those that are left."""

    in_groups: list[Labels] = field(default_factory=list)
    """The channels that grouped layers read or make."""
    in_steps: set[tuple[str, int]] = field(default_factory=set)
    """(name of a Slice, axis) for each axis of which it takes some channels in steps."""
    at: str = ""
    """The node whose rule runs, as the end of a sentence: " at Add in 'layer1.0'"."""

    def enter(self, node: Node | None) -> None:
        """Say which node's rule runs now; None after the last one. Reasons that are given now name it."""
        self.at = f" at {node}" if node else ""
        self.unions.fixed_reason = f"its channels meet a tensor that keeps its width{self.at}"

    def axis(self, initializer: str, axis: int) -> Labels:
        """The labels along one axis of an initializer. They are made at the first use."""
        if (initializer, axis) not in self.axes:
            self.axes[initializer, axis] = self.unions.new(self.constants[initializer].shape[axis])
        return self.axes[initializer, axis]

    def is_weight(self, name: str) -> bool:
        """Whether `name` is an initializer of floating-point numbers."""
        return name in self.constants and np.issubdtype(self.constants[name].dtype, np.floating)

    def value(self, name: str) -> Value:
        """What is known about `name`, which may be absent (''), an initializer or the output of a node."""
        if name in self.values or not name:
            return self.values.get(name, Value(()))
        shape = tuple(self.constants[name].shape)
        if not self.is_weight(name):
            return Value(shape)
        fields = []
        for axis, size in enumerate(shape):
            if size > 1:
                place = [1] * len(shape)
                place[axis] = size
                fields.append(self.axis(name, axis).reshape(place))
        return Value(shape, tuple(fields), name)

    def integers(self, node: Node, position: int, attribute: str = "") -> list[int] | None:
        """The constant integers of an input, or of the attribute that older opsets have in its place; None if there are none."""
        if len(node.inputs) > position and node.inputs[position]:
            found = self.constants.get(node.inputs[position])
            return None if found is None else [int(number) for number in np.atleast_1d(found)]
        if attribute in node.attributes:
            found = node.attributes[attribute]
            return [int(found)] if isinstance(found, int) else [int(number) for number in found]
        return None

    def freeze(self, value: Value, reason: str) -> None:
        """Freeze all labels of `value`."""
        for labels in value.fields:
            self.unions.freeze(labels, reason)

    def constant(self, value: Value, axes: Iterable[int], reason: str) -> Value:
        """Return `value` with fields that do not differ along `axes`."""
        axes = [axis % len(value.shape) for axis in axes]
        made = (constant_along(labels, axes, self.unions, reason) for labels in value.fields)
        return Value(value.shape, tuple(labels for labels in made if labels is not None and labels.size > 1), value.initializer)

    def movable(self, value: Value, axis: int) -> tuple[Labels, ...]:
        """The fields along `axis`. Of several, those that are frozen are left out, because nothing follows them."""
        found = value.on(axis)
        return found if len(found) < 2 else tuple(one for one in found if not self.unions.frozen(one).all())

    def vector(self, value: Value, axis: int, reason: str) -> Labels | None:
        """The labels along `axis` as one vector, or None when all of its positions stay."""
        found = self.movable(value, axis)
        if not found:
            return None
        vectors = []
        for labels in found:
            one = constant_along(labels, varying(labels) - {axis}, self.unions, reason)
            if one is None or one.shape[axis] == 1:  # the union has made all equal: the whole axis is one channel
                self.unions.freeze(labels, reason)
                continue
            vectors.append(along(one, axis))
        kept = self.one_kind(vectors, self.at.removeprefix(" at "))
        return kept[0] if kept else None

    def one_kind(self, fields: Sequence[Labels], where: str) -> Sequence[Labels]:
        """Of several kinds of channels on one axis, the one to which most weights belong. The others are frozen.

        queries of 2 heads, one value for all heads     h0 h1  x  v0 v1 v2
        heads x values, merged to one axis              h0 h0 h0 h1 h1 h1
                                                        v0 v1 v2 v0 v1 v2
        """
        fields = [one for number, one in enumerate(fields) if not any(self._same(one, other) for other in fields[:number])]
        if len(fields) < 2:
            return fields
        most = max(fields, key=self._weights_of)
        for labels in fields:
            if labels is not most:
                self.unions.freeze(labels, f"its channels share an axis with others at {where}, and only one kind can leave")
        return [most]

    def _same(self, one: Labels, other: Labels) -> bool:
        return np.array_equal(self.unions.find(one), self.unions.find(other))

    def _weights_of(self, labels: Labels) -> int:
        """The number of weights that belong to `labels`, so far."""
        roots, total = np.unique(self.unions.find(labels)), 0
        for (name, axis), own in self.axes.items():
            shape = self.constants[name].shape
            total += math.prod(shape) // shape[axis] * int(np.isin(self.unions.find(own), roots).sum())
        return total

    def resolved(self, value: Value, avoid: Sequence[int] = ()) -> Value:
        """Return `value` with fields that differ along one axis each."""
        fields = tuple(resolve(labels, self.unions, avoid) for labels in value.fields)
        return Value(value.shape, tuple(labels for labels in fields if labels.size > 1), value.initializer)


Rule = Callable[[Node, Trace], Sequence[Value]]
"""Returns what is known about each output of the node."""

RULES: dict[str, Rule] = {}
"""Op type -> rule. An op without a rule freezes what touches it."""


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Enter a function into the table of rules."""

    def enter(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return enter


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node as Python values; text as str."""
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}
