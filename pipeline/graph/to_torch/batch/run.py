"""Run: one step of a network on a whole batch."""

import torch
from torch import Tensor

from pipeline.graph.to_torch.batch.call import Call, NotSeparable, State, block, moved
from pipeline.graph.to_torch.batch.rules import RULES
from pipeline.graph.to_torch.node import described
from pipeline.graph.to_torch.steps import Step

__all__ = ["run_step"]


def run_step(step: Step, call: Call) -> tuple[tuple[Tensor, ...], list[State | None], bool]:
    """Return the outputs of a step, where the images lie in each, and whether the step had to run image by image.

    Raises NotSeparable when no single tensor can hold the outputs of all images.
    """
    if not any(call.states):
        outputs = step.run(call.inputs)
        return outputs, [None] * len(outputs), False
    found = _asked(call)
    if found is None and call.exported == 1:
        _move_images_first(call)
        found = _asked(call)
    if found is None:
        return *_one_by_one(step, call), True
    outputs = step.run(call.inputs)
    return outputs, found if isinstance(found, list) else [found] * len(outputs), False


def _asked(call: Call) -> State | list[State | None] | None:
    """What the op's rule says. If it says nothing, the inputs are as they were."""
    rule = RULES.get(call.node.op)
    given = list(call.inputs)
    found = None if rule is None else rule(call)
    if found is None:
        call.inputs = given
    return found


def _move_images_first(call: Call) -> None:
    for place, (value, state) in enumerate(zip(call.inputs, call.states, strict=True)):
        if value is not None and state is not None:
            call.inputs[place], call.states[place] = moved(value, state, State(0), call.images), State(0)


def _one_by_one(step: Step, call: Call) -> tuple[tuple[Tensor, ...], list[State | None]]:
    if call.exported != 1:
        raise NotSeparable(f"{described(step.node)} may mix the images of a batch")
    runs = []
    for index in range(call.images):
        pairs = zip(call.inputs, call.states, strict=True)
        parts = [value if state is None or value is None else block(value, state, call.images, index) for value, state in pairs]
        runs.append(step.run(parts))
    first = next(state for state in call.states if state is not None)
    outputs, states = [], []
    for found in zip(*runs, strict=True):
        if found[0].dim() == 0 or any(part.shape != found[0].shape for part in found):
            raise NotSeparable(f"{described(step.node)} has one number, or a size of its own, for each image")
        axis = min(first.axis, found[0].dim() - 1)
        outputs.append(torch.cat(found, axis))
        states.append(State(axis))
    return tuple(outputs), list(states)
