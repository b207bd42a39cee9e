"""Divergence: when a training loss says that training no longer learns anything, and what may be tried then."""

import math
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["LOWER", "MOST_RETREATS", "all_finite", "ends_diverged", "has_diverged", "reference_loss"]

WITHIN = 10.0
"""How many times the loss of a network that has learned nothing still counts as training, while an epoch goes on. Diverging
losses grow without bound, so a generous factor finds them a few steps later, and never ends a training that only begins badly.
"""
AT_THE_END = 2.0
"""The same, at the end of an epoch."""
WINDOW = 8
"""Steps whose mean loss is judged: one bad batch is no divergence."""
LOWER = 0.1
"""What the learning rate is multiplied by, each time training goes back to its best state."""
MOST_RETREATS = 3
"""How often one training goes back."""


def reference_loss(start: float, chance_level: float, classes: int) -> float:
    """The loss of a network that has learned nothing: what others are compared with.

    `start`: the loss before the first step. `guess`: that of a network that answers the same for each of `classes`. It bounds
    the result from below, because a good start has a loss near zero; so does the entropy of a guess, because a teacher that
    tells little from little makes `guess` small. A loss that is not finite is not counted.
    """
    return max(loss for loss in (start, chance_level, math.log(max(classes, 2))) if math.isfinite(loss))


def has_diverged(losses: Sequence[float], reference: float) -> bool:
    """Whether the last of `losses`, one per step, is not finite, or the mean of the last `WINDOW` is far above `reference`.

    Example: `has_diverged([2.3, math.nan], 2.3)` is True.
    """
    if not losses:
        return False
    recent = losses[-WINDOW:]
    return not math.isfinite(losses[-1]) or (len(recent) == WINDOW and sum(recent) / WINDOW > WITHIN * reference)


def ends_diverged(losses: Sequence[float], reference: float) -> bool:
    """Whether an epoch with these `losses`, one per step, ends above what a network that learned nothing has."""
    recent = losses[-WINDOW:]
    return bool(recent) and not sum(recent) / len(recent) <= AT_THE_END * reference


def all_finite(module: nn.Module) -> bool:
    """Whether every weight and every running statistic is a finite number."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in module.state_dict().values() if tensor.is_floating_point())
