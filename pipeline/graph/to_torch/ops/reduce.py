"""Reductions: functions that combine the values along axes, and those that compare or accumulate along one axis."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node, normal_axis
from pipeline.graph.to_torch.ops.elementwise import Op
from pipeline.graph.to_torch.ops.shape import axes_of

__all__ = ["ALONG", "ARG", "REDUCE", "reduced_axes"]

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def reduced_axes(node: Node, rank: int, axes: Tensor | None) -> list[int]:
    """The axes that a reduction removes, counted from the front. An empty list means that nothing is reduced."""
    found = axes_of(node, axes)
    if found:
        return sorted(normal_axis(axis, rank) for axis in found)
    return [] if node.int("noop_with_empty_axes", 0) else list(range(rank))


def _over(function: Reduction, before: Callable[[Tensor], Tensor] | None = None) -> Op:
    def reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        found = reduced_axes(node, x.dim(), axes)
        if not found and x.dim():
            return x
        return function(x if before is None else before(x), found, bool(node.int("keepdims", 1)))

    return reduce


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype) if axes else x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if not axes:
        return x
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(x.sum(axes, keepdim=keep), count, rounding_mode="trunc").to(x.dtype)


def _most(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amax(axes, keepdim=keep)


def _least(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.amin(axes, keepdim=keep)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, 2, axes, keepdim=keep)
    return length


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.logsumexp(axes, keepdim=keep)


REDUCE: dict[str, Op] = {
    "ReduceL1": _over(_sum, torch.abs),
    "ReduceL2": _over(_norm),
    "ReduceLogSum": _over(_log_sum),
    "ReduceLogSumExp": _over(_log_sum_exp),
    "ReduceMax": _over(_most),
    "ReduceMean": _over(_mean),
    "ReduceMin": _over(_least),
    "ReduceProd": _over(_product),
    "ReduceSum": _over(_sum),
    "ReduceSumSquare": _over(_sum, torch.square),
}
"""Ops that reduce a list of axes."""


def _position(function: Callable[..., Tensor]) -> Op:
    def find(node: Node, x: Tensor) -> Tensor:
        axis, keep = normal_axis(node.int("axis", 0), x.dim()), bool(node.int("keepdims", 1))
        if not node.int("select_last_index", 0):
            return function(x, axis, keepdim=keep)
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)

    return find


ARG: dict[str, Op] = {"ArgMax": _position(torch.argmax), "ArgMin": _position(torch.argmin)}
"""Ops that reduce one axis to a position."""


def _soft(function: Callable[..., Tensor]) -> Op:
    def soften(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, node.int("axis", -1))
        axis = normal_axis(node.int("axis", 1), x.dim())  # all axes from here on are one
        return function(x.flatten(axis), axis).reshape(x.shape) if axis < x.dim() else function(x.unsqueeze(-1), -1).squeeze(-1)

    return soften


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


def _top(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, ...]:
    count = node.int("k", 1) if k is None else int(k)
    return torch.topk(x, count, node.int("axis", -1), bool(node.int("largest", 1)), bool(node.int("sorted", 1)))


def _cumulative_sum(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis)
    if node.int("reverse", 0):
        x = x.flip(along)
    total = x.cumsum(along, dtype=x.dtype)
    if node.int("exclusive", 0):
        total = total - x
    return total.flip(along) if node.int("reverse", 0) else total


def _lp_normalise(node: Node, x: Tensor) -> Tensor:
    return F.normalize(x, node.int("p", 2), node.int("axis", -1))


ALONG: dict[str, Op] = {
    "CumSum": _cumulative_sum,
    "Hardmax": _soft(_hardmax),
    "LogSoftmax": _soft(F.log_softmax),
    "LpNormalization": _lp_normalise,
    "Softmax": _soft(F.softmax),
    "TopK": _top,
}
"""Ops that work along one axis and keep all axes."""
