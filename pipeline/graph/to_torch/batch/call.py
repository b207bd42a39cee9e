"""Call: one run of a node on a whole batch, and where the images lie in its tensors."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from pipeline.graph.to_torch.node import Node

__all__ = ["Call", "NotSeparable", "State", "block", "moved", "repeated"]


class State(NamedTuple):
    """Where the images lie in a tensor: `axis` is (outer, images, inner), flattened.

    What is computed for one image alone has (outer, inner) there. A tensor without a state is the same for every image.
    """

    axis: int
    outer: int = 1


class NotSeparable(Exception):
    """The images of a batch cannot be told apart in some value. The network then runs each image alone."""


@dataclass
class Call:
    """The inputs of a node for a whole batch. A rule may replace inputs, so that the node computes the whole batch at once."""

    node: Node
    inputs: list[Any]
    """Tensors, or None where an input is absent."""
    states: list[State | None]
    images: int
    """Images in this batch."""
    exported: int
    """Images in the batch for which the graph was exported."""

    def tensor(self, position: int) -> Tensor:
        """An input that must be there."""
        value: Tensor = self.inputs[position]
        return value

    def given(self, position: int) -> Tensor | None:
        """An input that may be absent."""
        return self.inputs[position] if position < len(self.inputs) else None

    def only_first(self) -> State | None:
        """The state of the first input, if no other input has one."""
        return None if any(self.states[1:]) else self.states[0]

    def single(self, position: int) -> list[int]:
        """The shape that an input has in the graph as it was exported."""
        shape, state = list(self.tensor(position).shape), self.states[position]
        if state is not None:
            shape[state.axis] = shape[state.axis] // self.images * self.exported
        return shape


def block(value: Tensor, state: State, images: int, index: int) -> Tensor:
    """What `value` is for one image alone."""
    axis, outer = state
    size = value.shape[axis]
    if outer == 1:
        return value.narrow(axis, index * (size // images), size // images)
    part: Tensor = value.unflatten(axis, (outer, images, -1)).select(axis + 1, index)
    return part.flatten(axis, axis + 1)


def moved(value: Tensor, state: State, goal: State, images: int) -> Tensor:
    """The same images at another place of a tensor of a graph that was exported for one image."""
    split: Tensor = value.unflatten(state.axis, (state.outer, images, -1)).movedim(state.axis + 1, 0)
    parts: Tensor = split.flatten(state.axis + 1, state.axis + 2).unflatten(goal.axis + 1, (goal.outer, -1))
    return parts.movedim(0, goal.axis + 1).flatten(goal.axis, goal.axis + 2)


def repeated(value: Tensor, state: State, images: int) -> Tensor:
    """A tensor that is the same for every image, once for every image."""
    axis, outer = state
    parts: Tensor = value.unflatten(axis, (outer, 1, -1))
    shape = list(parts.shape)
    shape[axis + 1] = images
    return parts.expand(shape).flatten(axis, axis + 2)
