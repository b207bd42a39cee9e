"""Divergence: detect from the loss that training has diverged, and the limits for continuing with a lower rate."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["LOWER", "MOST_RETREATS", "all_finite", "ends_diverged", "has_diverged", "reference_loss"]

WITHIN = 10.0
"""Largest ratio of the loss to the reference loss during an epoch. Diverging losses grow without bound, so a large factor finds
them only a few steps later. It does not stop a training that merely starts badly.
"""
AT_THE_END = 2.0
"""Largest ratio of the loss to the reference loss at the end of an epoch."""
WINDOW = 8
"""Number of steps whose mean loss is tested, because a single bad batch is not divergence."""
LOWER = 0.1
"""Factor on the learning rate each time training returns to its best state."""
MOST_RETREATS = 3
"""Largest number of returns to the best state in one training."""


def reference_loss(start: float, chance_level: float, classes: int) -> float:
    """Return the loss of a network that has learned nothing, with which training losses are compared.

    It is the largest finite one of three losses. `start` is the loss before the first step; it is near zero for a good network.
    `chance_level` is the loss of a network with equal outputs for all `classes`; it is small when the teacher's outputs are
    almost equal. The third is log(classes), the cross-entropy of a uniform prediction.
    """
    return max(loss for loss in (start, chance_level, math.log(max(classes, 2))) if math.isfinite(loss))


def has_diverged(losses: Sequence[float], reference: float) -> bool:
    """Return whether the last of `losses`, one per step, is not finite, or the last `WINDOW` are far above `reference`.

    Example: `has_diverged([2.3, math.nan], 2.3)` is True.
    """
    if not losses:
        return False
    recent = losses[-WINDOW:]
    return not math.isfinite(losses[-1]) or (len(recent) == WINDOW and sum(recent) / WINDOW > WITHIN * reference)


def ends_diverged(losses: Sequence[float], reference: float) -> bool:
    """Return whether the last `losses` of an epoch, one per step, are above `AT_THE_END` times the `reference` loss."""
    recent = losses[-WINDOW:]
    return bool(recent) and not sum(recent) / len(recent) <= AT_THE_END * reference


def all_finite(module: nn.Module) -> bool:
    """Return whether all weights and running statistics are finite.

    Other buffers may be infinite, as the mask of an attention is, but they must be numbers.
    """
    norms = (each for each in module.modules() if isinstance(each, _NormBase))
    learned = [*module.parameters(), *(statistic for norm in norms for statistic in norm.buffers(recurse=False))]
    numbers = (buffer for buffer in module.buffers() if buffer.is_floating_point())
    checks = (*map(torch.isfinite, learned), *(~torch.isnan(each) for each in numbers))
    return all(bool(check.all()) for check in checks)
