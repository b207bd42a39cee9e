"""Index rules: a list of positions as an index, and an assignment to some positions, become a Gather along one axis.

The exporters write `x[:, [0, 2, 1]]` as a GatherND and `x[:, :2] = y` as a ScatterND, mostly of a transposed tensor. Their
indices are numbers of channels, and no label rule says how they follow when channels leave. Those of a Gather follow. These rules
look at operators, shapes and indices, never at the values of weights.

x[:, [0, 2, 1]]     Gather<axis = 1>(x, [0, 2, 1])                      x0 x2 x1
x[:, :2] = y        Gather<axis = 1>(Concat<axis = 1>(x, y), [3, 4, 2])     of x0 x1 x2 y0 y1: y0 y1 x2
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnxscript.rewriter import RewriteRuleClassBase

__all__ = ["INDEX_RULES"]

Integers = NDArray[np.int64]


class _ListIndex(RewriteRuleClassBase):
    """GatherND along the first axis of a transposed tensor, which is transposed back."""

    def pattern(self, op: Any, data: Any, indices: Any, perm: Any) -> Any:
        return op.Transpose(op.GatherND(data, indices, _outputs=["found"]), perm=perm)

    def rewrite(self, op: Any, data: onnx_ir.Value, indices: onnx_ir.Value, perm: onnx_ir.Attr, found: onnx_ir.Value) -> Any:
        node, given, order = found.producer(), _constant(indices), perm.as_ints()
        if node is None or given is None or given.ndim != 2 or given.shape[1] != 1 or node.attributes.get_int("batch_dims", 0):
            return None
        return op.Gather(op.Transpose(data, perm=order), _integers(op, given[:, 0]), axis=order.index(0))


class _TransposedAssignment(RewriteRuleClassBase):
    """ScatterND along the first axis of a transposed tensor, which is transposed back."""

    def pattern(self, op: Any, data: Any, indices: Any, updates: Any, perm: Any) -> Any:
        return op.Transpose(op.ScatterND(data, indices, updates, _outputs=["made"]), perm=perm)

    def rewrite(self, op: Any, data: Any, indices: Any, updates: Any, perm: onnx_ir.Attr, made: onnx_ir.Value) -> Any:
        found, order = _assigned(made), perm.as_ints()
        if found is None:
            return None
        parts = op.Transpose(data, perm=order), op.Transpose(updates, perm=order)
        return _gathered(op, parts, order.index(found[0]), found[1])


class _Assignment(RewriteRuleClassBase):
    """ScatterND or ScatterElements along one axis."""

    def __init__(self, op_type: str) -> None:
        super().__init__(f"{op_type} to Gather")
        self._op_type = op_type

    def pattern(self, op: Any, data: Any, indices: Any, updates: Any) -> Any:
        return getattr(op, self._op_type)(data, indices, updates, _outputs=["made"])

    def rewrite(self, op: Any, data: Any, indices: Any, updates: Any, made: onnx_ir.Value) -> Any:
        readers = [use.node.op_type for use in made.uses()]
        found = _assigned(made)
        if found is None or (self._op_type == "ScatterND" and readers == ["Transpose"]):  # the rule above takes the latter
            return None
        return _gathered(op, (data, updates), *found)


def _gathered(op: Any, parts: tuple[Any, Any], axis: int, order: Integers) -> Any:
    return op.Gather(op.Concat(*parts, axis=axis), _integers(op, order), axis=axis)


def _assigned(made: onnx_ir.Value) -> tuple[int, Integers] | None:
    """The axis along which a ScatterND or ScatterElements assigns, and the order of the result in the data and the new values
    one after the other. None if it depends on the input, differs along the other axes, or assigns a position twice.
    """
    node = made.producer()
    data, given = (node.inputs[0], _constant(node.inputs[1])) if node is not None else (None, None)
    if node is None or data is None or given is None or node.attributes.get_string("reduction", "none") != "none":
        return None
    if data.shape is None or not data.shape.is_static():
        return None
    shape = tuple(data.shape.numpy())
    found = _elements(node, given, shape) if node.op_type == "ScatterElements" else _entries(given, shape)
    if found is None:
        return None
    axis, positions = found
    order = np.arange(shape[axis])
    order[positions] = shape[axis] + np.arange(len(positions))
    is_twice = len(np.unique(positions % shape[axis])) < len(positions)
    return None if is_twice else (axis, order)


def _elements(node: onnx_ir.Node, indices: Integers, shape: Sequence[int]) -> tuple[int, Integers] | None:
    """The axis and the positions of a ScatterElements."""
    axis = node.attributes.get_int("axis", 0) % len(shape)
    others = [size for number, size in enumerate(indices.shape) if number != axis]
    if others != [size for number, size in enumerate(shape) if number != axis]:
        return None
    rows = np.moveaxis(indices, axis, 0).reshape(indices.shape[axis], -1)
    return (axis, rows[:, 0]) if rows.size and (rows == rows[:, :1]).all() else None


def _entries(indices: Integers, shape: Sequence[int]) -> tuple[int, Integers] | None:
    """The axis and the positions of a ScatterND. Its indices are entries of the first axis, (n, 1), or a grid, (..., rank)."""
    if indices.ndim == 2 and indices.shape[1] == 1:
        return 0, indices[:, 0]
    rank = len(shape)
    if indices.ndim != rank + 1 or indices.shape[-1] != rank or not indices.size:
        return None
    along = [np.moveaxis(indices[..., axis], axis, 0).reshape(indices.shape[axis], -1) for axis in range(rank)]
    if any((rows != rows[:, :1]).any() for rows in along):
        return None
    partial = [axis for axis, rows in enumerate(along) if not np.array_equal(rows[:, 0], np.arange(shape[axis]))]
    return (partial[0], along[partial[0]][:, 0]) if len(partial) == 1 else None


def _constant(value: onnx_ir.Value | None) -> Integers | None:
    tensor = onnx_ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy().astype(np.int64)


def _integers(op: Any, values: Integers) -> Any:
    return op.Constant(value=onnx_ir.tensor(values))


INDEX_RULES = tuple(
    kind.rule(*given)  # type: ignore[no-untyped-call]
    for kind, *given in ((_ListIndex,), (_TransposedAssignment,), (_Assignment, "ScatterND"), (_Assignment, "ScatterElements"))
)
"""In the order in which they are tried."""
