"""Objective: what a method makes a pruned network learn, as one function of a batch."""

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.training.teacher import Teacher

__all__ = ["Method", "Objective", "warm_cosine"]


class Objective(Protocol):
    """The loss of one method, for one pruned network and its teacher."""

    def loss(self, pixels: Inputs, done: float) -> Tensor:
        """Return the loss on `pixels`, (N, C, H, W), after the share `done` of the round's steps, 0 to 1."""

    def rate(self, done: float) -> float:
        """Return the share of the peak rate after the share `done` of the steps."""


Method = Callable[[nn.Module, Teacher, Inputs], Objective]
"""(pruned network, teacher, a few pictures) -> objective. The networks are on the same device as the pictures."""

WARMUP = 0.1
"""Share of the steps in which the rate rises."""


def warm_cosine(done: float) -> float:
    """Return the share of the peak rate: it rises for a tenth of the steps, and falls to zero along a cosine."""
    if done < WARMUP:
        return max(done / WARMUP, 0.1)
    return 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
