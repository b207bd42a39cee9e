"""Check network: whether a network fits the task, before anything else is done with it."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs, outputs_of, tensors_of
from pipeline.core.feeds import shapes_text
from pipeline.errors import DataError, ModelError, TraceError, one_line
from pipeline.foreign_text import clean_text
from pipeline.graph.given.read import GivenNetwork
from pipeline.stages.job import Job
from pipeline.stages.onnx_model import is_onnx
from pipeline.training.own_task import OwnTask

__all__ = ["check_classifier", "check_inputs", "check_samples", "fit_to_file"]


def check_classifier(module: nn.Module, images: Tensor, classes: int | None, job: Job) -> None:
    """Raises TraceError if the network does not run on `images`, (N, C, H, W), and ModelError if it does not return one tensor
    of (N, classes). `classes` is None if any number will do.
    """
    try:
        with torch.no_grad():
            answer = module(images)
    except Exception as problem:
        place = "preprocessing.yaml beside the images" if is_onnx(job.model) else "a PREPROCESSING beside the factory"
        raise TraceError(
            f"{job.model}: the network fails on an image batch of shape {tuple(images.shape)}: {one_line(problem)}; declare "
            f"size, mean and std (one value per channel) in {place}"
        ) from None
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        several = f"{len(answer)} tensors" if isinstance(answer, tuple) else type(answer).__name__
        kind = tuple(answer.shape) if isinstance(answer, Tensor) else several
        raise ModelError(
            f"{job.model}: the network returns {kind}, but classification needs one tensor of (N, classes); use OwnTask for "
            "other tasks"
        )
    if classes is not None and answer.shape[1] != classes:
        raise ModelError(
            f"{job.model}: the network has {answer.shape[1]} classes, but {job.data} has {classes}; give the images that it "
            "was trained on"
        )


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
    """Raises ModelError if the network does not return tensors that have one part per sample of `inputs` on their first axis."""
    with torch.no_grad():
        answer = module(inputs)
    try:
        outputs = outputs_of(answer)
    except TypeError:
        raise ModelError(f"{spec}: the network returns a {type(answer).__name__} in place of tensors") from None
    for number, output in enumerate(outputs):
        if not output.dim() or len(output) != len(inputs):
            raise ModelError(
                f"{spec}: output {number + 1} of {len(outputs)} is {shapes_text([output.shape])} for {len(inputs)} samples; its "
                "first axis must be the sample, so leave it out of what the network returns, or reshape it"
            )
