"""Distil: the pruned network learns the dense network's outputs (Hinton et al., arXiv 1503.02531, section 2).

Labels are not used: with few pictures, the probabilities of all classes say more than one label. The pictures are varied
strongly (`augment.py`), and the teacher sees the same variation (Beyer et al., arXiv 2106.05237).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.training.epochs import distillation_loss
from pipeline.training.recover.objective import Objective, warm_cosine
from pipeline.training.relative_error import as_floats
from pipeline.training.teacher import Teacher

__all__ = ["TEMPERATURE", "distil"]

TEMPERATURE = 4.0


@dataclass(frozen=True)
class _Distil:
    student: nn.Module
    teacher: nn.Module

    def loss(self, pixels: Inputs, done: float) -> Tensor:
        with torch.no_grad():
            target = self.teacher(pixels)
        return distillation_loss(as_floats(self.student(pixels)), as_floats(target), TEMPERATURE)

    def rate(self, done: float) -> float:
        return warm_cosine(done)


def distil(student: nn.Module, teacher: Teacher, pictures: Inputs) -> Objective:
    """Return the objective. See `pipeline.training.recover.objective.Method`."""
    return _Distil(student, teacher.module)
