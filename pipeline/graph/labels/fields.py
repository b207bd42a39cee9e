"""Fields: the labels of one value of the graph, along the axes on which they differ.

A value can have several fields. A position of the value is removed when one of its labels is. For example, after a linear layer
over tokens, a value (N, channels, tokens) has one field along the channels and one along the tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pipeline.graph.labels.unions import FIXED, Labels, Unions

__all__ = ["Value", "along", "compact", "constant_along", "resolve", "varying"]


@dataclass(frozen=True)
class Value:
    """What is known about one value of the graph."""

    shape: tuple[int, ...]
    fields: tuple[Labels, ...] = ()
    """Each has as many axes as the value; an axis on which the labels do not differ has length 1."""
    initializer: str | None = None
    """The name of the initializer that the value is, if it is one."""

    def on(self, axis: int) -> tuple[Labels, ...]:
        """The fields that differ along `axis`."""
        return tuple(field for field in self.fields if field.shape[axis] > 1)

    def moved(self, move: Callable[[Labels], Labels], unions: Unions) -> tuple[Labels, ...]:
        """The fields after an operation that only moves data: `move` is applied to each, in the value's full shape."""
        moved = (move(np.broadcast_to(field, self.shape)) for field in self.fields)
        return tuple(kept for kept in (compact(field, unions) for field in moved) if kept.size > 1)


def varying(field: Labels) -> set[int]:
    """The axes along which the labels of `field` differ."""
    return {axis for axis, size in enumerate(field.shape) if size > 1}


def compact(field: Labels, unions: Unions) -> Labels:
    """Return `field` with length 1 on every axis along which its sets do not differ."""
    field = unions.find(field)
    for axis, size in enumerate(field.shape):
        if size > 1:
            first = field.take([0], axis)
            if np.array_equal(np.broadcast_to(first, field.shape), field):
                field = first
    return field


def along(field: Labels, axis: int) -> Labels:
    """The labels of `field` along its only varying axis, as a vector."""
    return field.reshape(field.shape[axis])


def constant_along(field: Labels, axes: Iterable[int], unions: Unions, reason: str) -> Labels | None:
    """Make `field` equal along `axes` by uniting labels.

    Where it differs along no other axis, it is frozen for `reason`, and the result is None.
    """
    inside = varying(field) & set(axes)
    if not inside:
        return field
    if inside == varying(field):
        unions.freeze(field, reason)
        return None
    first = field
    for axis in inside:
        first = first.take([0], axis)
    unions.unite(field, first)
    return compact(field, unions)


def resolve(field: Labels, unions: Unions, avoid: Sequence[int] = ()) -> Labels:
    """Make `field` differ along one axis only, because only whole entries of an axis can be removed.

    The axis that leaves the most channels is chosen, and the last one of equals; one of `avoid` only if there is no other.
    For example, the channels of a shuffle, (groups, channels), are united over the groups.
    """
    field = compact(field, unions)
    axes = varying(field)
    if len(axes) <= 1:
        return field
    best = max(axes, key=lambda axis: (axis not in avoid, _sets_left(field, axis), axis))
    united = constant_along(field, axes - {best}, unions, "")
    if united is None or len(varying(united)) <= 1:
        return field if united is None else united
    # labels that meet FIXED are frozen and stay sets of their own, so they are made equal here
    return resolve(np.where(unions.frozen(united), FIXED, united), unions, avoid)


def _sets_left(field: Labels, axis: int) -> int:
    """The number of sets when all labels in each entry of `axis` are united."""
    rows = np.moveaxis(field, axis, 0).reshape(field.shape[axis], -1)
    owner: dict[int, int] = {}
    left = list(range(len(rows)))

    def root(row: int) -> int:
        while left[row] != row:
            row = left[row]
        return row

    for row, labels in enumerate(rows):
        for label in np.unique(labels).tolist():
            other = root(owner.setdefault(label, row))
            left[max(other, root(row))] = min(other, root(row))
    return sum(root(row) == row for row in range(len(rows)))


def overlapping(fields: Sequence[Labels]) -> tuple[int, int] | None:
    """The indices of two fields that differ along a common axis, or None."""
    for one, other in combinations(range(len(fields)), 2):
        if varying(fields[one]) & varying(fields[other]):
            return one, other
    return None
