"""Moving: where the images of a batch lie after the ops that reorder, join, cut and repeat tensors, {op type: rule}."""

from collections.abc import Callable

import torch

from pipeline.graph.to_torch.batch.call import Call, State, repeated
from pipeline.graph.to_torch.batch.reshape import reshaped
from pipeline.graph.to_torch.node import as_ints, normal_axis
from pipeline.graph.to_torch.ops.shape import axes_of, pad_widths, slice_ranges

__all__ = ["MOVING", "Rule"]

Rule = Callable[[Call], State | list[State | None] | None]
"""A call -> the state of all outputs, or of each. None if the op cannot compute all images at once here."""


def _transpose(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    order = call.node.ints("perm") or list(reversed(range(call.tensor(0).dim())))
    return State(order.index(state.axis), state.outer)


def _unsqueeze(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    axes = axes_of(call.node, call.given(1)) or []
    rank = call.tensor(0).dim() + len(axes)
    new = {normal_axis(axis, rank) for axis in axes}
    return State([axis for axis in range(rank) if axis not in new][state.axis], state.outer)


def _squeeze(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    single = call.single(0)
    axes = axes_of(call.node, call.given(1))
    gone = (
        {axis for axis, size in enumerate(single) if size == 1}
        if axes is None
        else {normal_axis(axis, len(single)) for axis in axes}
    )
    if state.axis in gone:
        return None
    return State(state.axis - sum(axis < state.axis for axis in gone), state.outer)


def _concat(call: Call) -> State | None:
    held = {(state, call.tensor(place).dim()) for place, state in enumerate(call.states) if state is not None}
    if len(held) != 1:
        return None
    state, rank = held.pop()
    if normal_axis(call.node.int("axis", 0), rank) == state.axis:
        return None
    for place, known in enumerate(call.states):
        if known is None:
            if call.exported != 1 or call.tensor(place).shape[state.axis] % state.outer:
                return None
            call.inputs[place] = repeated(call.tensor(place), state, call.images)
    return state


def _split(call: Call) -> State | None:
    state = call.only_first()
    axis = normal_axis(call.node.int("axis", 0), call.tensor(0).dim())
    return state if state is not None and state.axis != axis else None


def _slice(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    single = call.single(0)
    ranges = slice_ranges(call.node, len(single), *call.inputs[1:])
    bounds = []
    for axis, start, end, step in ranges:
        if axis != state.axis:
            bounds.append((axis, start, end, step))
        elif not (start in (0, -single[axis]) and end >= single[axis] and step == 1):
            return None
    columns = [[bound[place] for bound in bounds] for place in (1, 2, 0, 3)]  # starts, ends, axes, steps
    call.inputs[1:] = [torch.tensor(column, dtype=torch.long) for column in columns]
    return state


def _gather(call: Call) -> State | None:
    data, indices = call.states[:2]
    axis = normal_axis(call.node.int("axis", 0), call.tensor(0).dim())
    if indices is None and data is not None and data.axis != axis:
        return data if data.axis < axis else State(data.axis + call.tensor(1).dim() - 1, data.outer)
    if data is None and indices is not None:
        return State(indices.axis + axis, indices.outer)
    if data is not None and indices is None and data.outer == 1 and call.exported == 1 and call.tensor(1).dim():
        return _gather_images(call, axis)
    return None


def _gather_images(call: Call, axis: int) -> State:
    """Gather along the axis of the images: each image has indices of its own."""
    size = call.single(0)[axis]
    index = call.tensor(1)
    index = torch.where(index < 0, index + size, index)
    call.inputs[1] = torch.cat([index + image * size for image in range(call.images)])
    return State(axis)


def _gather_elements(call: Call) -> State | None:
    data, indices = call.states[:2]
    axis = normal_axis(call.node.int("axis", 0), call.tensor(0).dim())
    same = call.tensor(0).shape == call.tensor(1).shape or data == indices
    return data if data is not None and data == indices and data.axis != axis and same else None


def _expand(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    single, target = call.single(0), as_ints(call.tensor(1))
    goal = torch.broadcast_shapes(single, target)
    axis = state.axis + len(goal) - len(single)
    if goal[axis] != single[state.axis]:
        return None
    call.inputs[1] = torch.tensor([1 if place == axis else size for place, size in enumerate(goal)])
    return State(axis, state.outer)


def _tile(call: Call) -> State | None:
    state = call.only_first()
    return state if state is not None and as_ints(call.tensor(1))[state.axis] == 1 else None


def _pad(call: Call) -> State | None:
    state = call.only_first()
    if state is None:
        return None
    widths = pad_widths(call.node, call.tensor(0).dim(), call.given(1), call.given(3))
    return state if widths[state.axis] == (0, 0) else None


def _shape(call: Call) -> list[State | None]:
    """A shape is the one that the graph was exported with. What follows from it is adapted where it is used."""
    call.inputs[0] = torch.empty(call.single(0), device="meta")
    return [None]


def _one_hot(call: Call) -> State | None:
    state = call.only_first()
    axis = normal_axis(call.node.int("axis", -1), call.tensor(0).dim() + 1)
    return None if state is None else State(state.axis + int(axis <= state.axis), state.outer)


MOVING: dict[str, Rule] = {
    **dict.fromkeys(["Flatten", "Reshape"], reshaped),
    **dict.fromkeys(["Shape", "Size"], _shape),
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
