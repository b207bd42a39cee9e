"""Relative error: how far the outputs of a network are from the dense network's, where they are no scores of classes.

The error of one output for one sample is the root of the mean squared difference, divided by the spread of that output. The
spread is the root of the mean squared difference of the dense network's outputs from their mean over all samples, value by value.
So an error of 1 is that of a network that always gives the mean. For integers and booleans, it is the share of values that
differ.

    agreement of a sample = 100 % x (1 - mean over outputs of min(error, 1))
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.core.batch import Outputs, outputs_of

__all__ = ["as_floats", "imitation_loss", "is_classifier", "sample_agreement", "spreads_of"]

LEAST_SPREAD = 1e-6
LEAST_VARIANCE = 1e-12


def is_classifier(outputs: object) -> bool:
    """Whether `outputs` are one tensor of scores, (N, classes)."""
    return isinstance(outputs, Tensor) and outputs.dim() == 2 and outputs.shape[1] > 1 and outputs.is_floating_point()


def as_floats(outputs: Outputs) -> Outputs:
    """Return `outputs` in float32. Integers and booleans stay."""
    found = tuple(each.float() if each.is_floating_point() else each for each in outputs_of(outputs))
    return found[0] if isinstance(outputs, Tensor) else found


def spreads_of(batches: Iterable[Outputs]) -> tuple[float, ...]:
    """Return the spread of each output over all samples of `batches`. If an output is always the same, it is the root of its mean
    square.
    """
    sums: list[Tensor] = []
    squares: list[Tensor] = []
    count = 0
    for outputs in batches:
        tensors = [each.double() for each in outputs_of(outputs)]
        if not sums:
            sums, squares = ([torch.zeros_like(each[0]) for each in tensors] for _ in range(2))
        for number, each in enumerate(tensors):
            sums[number] += each.sum(0)
            squares[number] += each.square().sum(0)
        count += len(tensors[0])
    found = []
    for total, square in zip(sums, squares, strict=True):
        power = float((square / count).mean())
        variance = float((square / count - (total / count).square()).mean())
        found.append(max((variance if variance > 1e-9 * power else power) ** 0.5, LEAST_SPREAD))
    return tuple(found)


def sample_agreement(outputs: Outputs, target: Outputs, spreads: tuple[float, ...]) -> Tensor:
    """Return the agreement of each sample with the dense network's outputs, `target`, in percent, (N,)."""
    errors = []
    for ours, theirs, spread in zip(outputs_of(outputs), outputs_of(target), spreads, strict=True):
        if theirs.is_floating_point():
            error = (ours.double() - theirs.double()).square().reshape(len(theirs), -1).mean(1).sqrt() / spread
        else:
            error = (ours != theirs).double().reshape(len(theirs), -1).mean(1)
        errors.append(error.nan_to_num(1.0).clamp(max=1.0).cpu())
    return 100.0 * (1.0 - torch.stack(errors).mean(0))


def imitation_loss(outputs: Outputs, target: Outputs) -> Tensor:
    """Return the mean over outputs of the squared difference as a share of the variance of `target` in this batch.

    Integers and booleans have no gradient and are left out. Raises ValueError if there are no other outputs.
    """
    losses = [
        (ours.float() - theirs.float()).square().mean() / theirs.float().var(correction=0).clamp(min=LEAST_VARIANCE)
        for ours, theirs in zip(outputs_of(outputs), outputs_of(target), strict=True)
        if theirs.is_floating_point()
    ]
    if not losses:
        raise ValueError("the network returns only integers, from which nothing can be learned; use OwnTask")
    return torch.stack(losses).mean()
