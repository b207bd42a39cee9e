"""Reshape: where the images of a batch lie after a Reshape or a Flatten whose target was written for one batch size."""

import math

import torch

from pipeline.graph.to_torch.batch.call import Call, State
from pipeline.graph.to_torch.node import as_ints, normal_axis
from pipeline.graph.to_torch.ops.shape import reshape_target

__all__ = ["reshaped", "state_after"]


def reshaped(call: Call) -> State | None:
    """Adapt the target to the number of images."""
    state = call.only_first()
    if state is None:
        return None
    single = call.single(0)
    if call.node.op == "Flatten":
        axis = normal_axis(call.node.int("axis", 1), len(single))
        return _flattened(single, state, axis)
    target = reshape_target(single, as_ints(call.tensor(1)), bool(call.node.int("allowzero", 0)))
    found = state_after(single, state, target, call.exported)
    if found is not None:
        target[found.axis] = target[found.axis] // call.exported * call.images
        call.inputs[1] = torch.tensor(target, dtype=torch.long)
    return found


def _flattened(single: list[int], state: State, axis: int) -> State:
    if state.axis < axis:
        return State(0, math.prod(single[: state.axis]) * state.outer)
    return State(1, math.prod(single[axis : state.axis]) * state.outer)


def state_after(single: list[int], state: State, target: list[int], exported: int) -> State | None:
    """Where the images lie after a tensor of shape `single` is reshaped to `target`. Both shapes are those of the exported graph.

    A reshape keeps the order of all numbers. Before the images there are `before` places in that order. So an axis of the target
    can hold the images if the axes in front of it have a product that divides `before`, and if the rest divides the axis itself.
    Often several axes can, and each is right. The choice only decides how many of the next ops can compute all images at once.
    """
    before = math.prod(single[: state.axis]) * state.outer
    found, lead = [], 1
    for axis, size in enumerate(target):
        outer = before // lead if lead and before % lead == 0 else 0
        if outer and size and size % (outer * exported) == 0:
            found.append(State(axis, outer))
        lead *= size
    return min(found, key=lambda choice: _dislike(choice, (single, state, target, exported)), default=None)


def _dislike(choice: State, seen: tuple[list[int], State, list[int], int]) -> int:
    single, state, target, exported = seen
    untouched = choice == state and target[: choice.axis + 1] == single[: choice.axis + 1]
    if untouched and choice.outer == 1:
        return 0
    last = choice.axis == len(target) - 1 and choice.axis > 0
    if choice.outer == 1 and target[choice.axis] == exported and not last:
        return 1  # an axis for the images alone
    if untouched:
        return 2
    if choice.outer == 1 and not last:
        return 3  # images first, then what was joined to them
    return 5 if last else 4  # layers work along the last axis
