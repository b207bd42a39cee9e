"""Check network: whether a network fits the task, before anything else is done with it."""

import inspect
import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs, Outputs, outputs_of, tensors_of
from pipeline.core.feeds import shapes_text
from pipeline.core.network_form import TensorNetwork
from pipeline.data.arrays import is_array_file
from pipeline.data.images import Splits
from pipeline.errors import DataError, ModelError, TraceError, one_line
from pipeline.foreign_text import clean_text
from pipeline.graph.given.read import GivenNetwork
from pipeline.stages.job import Job
from pipeline.stages.onnx_model import is_onnx
from pipeline.training.own_task import OwnTask

__all__ = ["argument_names", "check_classifier", "check_inputs", "check_runs", "check_samples", "fit_to_file"]


def check_runs(module: nn.Module, inputs: Inputs, job: Job) -> Outputs:
    """Return what the network returns for `inputs`. Raises TraceError if it does not run on them, and ModelError if it does not
    return tensors.
    """
    try:
        with torch.no_grad():
            answer = module(inputs)
    except Exception as problem:
        shapes = shapes_text([tensor.shape for tensor in tensors_of(inputs)])
        if is_array_file(job.data):
            raise TraceError(
                clean_text(
                    f"{job.model}: the network fails on inputs of {shapes} from {job.data}: {one_line(problem)}; write them as"
                )
                + " the network takes them"
            ) from None
        place = "preprocessing.yaml beside the images" if is_onnx(job.model) else "a PREPROCESSING beside the factory"
        shape = tuple(tensors_of(inputs)[0].shape)
        raise TraceError(
            f"{job.model}: the network fails on an image batch of shape {shape}: {one_line(problem)}; "
            f"declare size, mean and std (one value per channel) in {place}"
        ) from None
    try:
        outputs_of(answer)
    except TypeError:
        raise ModelError(f"{job.model}: the network returns a {type(answer).__name__} in place of tensors") from None
    outputs: Outputs = answer
    return outputs


def check_classifier(outputs: Outputs, classes: int, job: Job) -> None:
    """Raises ModelError if `outputs` are not one tensor of (N, classes)."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        kind = str(tuple(outputs.shape)) if isinstance(outputs, Tensor) else f"{len(outputs)} tensors"
        raise ModelError(
            f"{job.model}: the network returns {kind}, but classification needs one tensor of (N, classes); for another "
            "task, give --task, or images without labels"
        )
    if outputs.shape[1] != classes:
        raise ModelError(
            f"{job.model}: the network has {outputs.shape[1]} classes, but {job.data} has {classes}; give the images that it "
            "was trained on"
        )


def argument_names(module: nn.Module, splits: Splits, job: Job) -> tuple[str, ...]:
    """The names by which the network takes the arrays of `splits`; nothing if it takes them by position.

    Raises DataError if the names of the arrays are none of its arguments.
    """
    names = splits.input_names
    if not names or isinstance(module, TensorNetwork) or all(re.fullmatch(r"arr_\d+", name) for name in names):
        return ()  # numpy calls arrays arr_0, arr_1, ... if they have no names
    parameters = inspect.signature(module.forward).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()) and not set(names) <= set(parameters):
        if len(names) == 1:
            return ()
        got, wanted = ", ".join(names), ", ".join(parameters)
        raise DataError(
            clean_text(f"{job.data}: has arrays {got}; the network takes {wanted}: name the arrays like its arguments")
        )
    return names


def fit_to_file(task: OwnTask, given: GivenNetwork, spec: str) -> OwnTask:
    """Return `task` with its inputs in the order of the inputs of `given`. Raises DataError if they do not fit the file."""
    doors = given.facts.doors
    if task.input_names:
        if set(task.input_names) != {door.name for door in doors}:
            got, wanted = ", ".join(task.input_names), ", ".join(door.name for door in doors)
            raise DataError(clean_text(f"{spec}: its inputs are {wanted}, and the task has {got}; give one tensor for each"))
        named = dict(zip(task.input_names, tensors_of(task.inputs(task.count)), strict=True))
        found = tuple(named[door.name] for door in doors)
    else:
        found = tensors_of(task.inputs(task.count))
    check_inputs(found, given, spec)
    return replace(task, all_inputs=found[0] if len(found) == 1 else found)


def check_inputs(tensors: tuple[Tensor, ...], given: GivenNetwork, spec: str) -> None:
    """Raises DataError if `tensors` have another number, shape or type than the inputs of `given`."""
    doors = given.facts.doors
    if len(tensors) != len(doors):
        names = ", ".join(door.name for door in doors)
        raise DataError(clean_text(f"{spec}: it has {len(doors)} inputs ({names}), got {len(tensors)}; give one array for each"))
    for door, tensor in zip(doors, tensors, strict=True):
        kind = str(tensor.dtype).removeprefix("torch.")
        if (kind, tuple(tensor.shape[1:])) != (door.type, door.shape[1:]):
            got, wanted = (shapes_text([("N", *shape)]) for shape in (tensor.shape[1:], door.shape[1:]))
            raise DataError(clean_text(f"{spec}: input '{door.name}': got {kind} {got}; the file takes {door.type} {wanted}"))


def check_samples(module: nn.Module, inputs: Inputs, spec: str) -> None:
    """Raises ModelError if the network does not return tensors whose first axis is the sample. `inputs` are one sample."""
    with torch.no_grad():
        answer = module(inputs)
    try:
        outputs = outputs_of(answer)
    except TypeError:
        raise ModelError(f"{spec}: the network returns a {type(answer).__name__} in place of tensors") from None
    for number, output in enumerate(outputs):
        if not output.dim() or len(output) != len(inputs):
            raise ModelError(
                f"{spec}: output {number + 1} of {len(outputs)} is {shapes_text([output.shape])} for one sample; its "
                "first axis must be the sample, so leave it out of what the network returns, or reshape it"
            )
