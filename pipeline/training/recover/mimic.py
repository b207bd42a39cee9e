"""Mimic: the pruned network learns the dense network's features (MiR: Wang et al., CVPR 2022, arXiv 2201.02620).

The paper compares the last features before pooling, and leaves the last layers as they are. So does this method, with two
differences. The pruned network may have fewer channels there, so the channels that were kept are compared. The ends of stages
are compared too. Each difference is divided by the variance of the dense network's features, so that all places count alike.
A network without a place in common with the dense one learns the outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.training.recover.distil import distil
from pipeline.training.recover.features import Place, difference, find_places, run_recorded
from pipeline.training.recover.objective import Objective, warm_cosine
from pipeline.training.teacher import Teacher

__all__ = ["mimic"]


@dataclass(frozen=True)
class _Mimic:
    student: nn.Module
    teacher: nn.Module
    places: tuple[Place, ...]

    def loss(self, pixels: Inputs, done: float) -> Tensor:
        with torch.no_grad():
            _, dense = run_recorded(self.teacher, self.places, pixels)
        _, pruned = run_recorded(self.student, self.places, pixels)
        differences = [difference(place, ours, theirs) for place, ours, theirs in zip(self.places, pruned, dense, strict=True)]
        return torch.stack(differences).mean()

    def rate(self, done: float) -> float:
        return warm_cosine(done)


def mimic(student: nn.Module, teacher: Teacher, pictures: Inputs) -> Objective:
    """Return the objective. See `pipeline.training.recover.objective.Method`."""
    places = find_places(student, teacher, pictures)
    return _Mimic(student, teacher.module, places) if places else distil(student, teacher, pictures)
