"""Blocks: the pruned network learns the dense network's features block by block, from the first to the last.

While a block learns, the blocks before it are finished, and it reads what they really give (Bai et al., Cross Distillation, arXiv
1911.09450, without their mixing of the two networks' inputs; Li et al., FSKD, arXiv 1812.01839, fit one layer for each block).
A block is what a network computes between two of the places of `features.py`. The layers after the last place learn the outputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.training.epochs import distillation_loss
from pipeline.training.recover.distil import TEMPERATURE
from pipeline.training.recover.features import Place, difference, find_places, parameters_before, run_until
from pipeline.training.recover.objective import Objective, warm_cosine
from pipeline.training.relative_error import as_floats
from pipeline.training.teacher import Teacher

__all__ = ["blocks"]


@dataclass(frozen=True)
class _Blocks:
    student: nn.Module
    teacher: nn.Module
    places: tuple[Place, ...]
    parameters: tuple[tuple[nn.Parameter, ...], ...]
    """The parameters of each block, and last those after all places if there are any. Each has some."""

    def loss(self, pixels: Inputs, done: float) -> Tensor:
        number = min(int(done * len(self.parameters)), len(self.parameters) - 1)
        learning = {id(parameter) for parameter in self.parameters[number]}
        for parameter in self.student.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        if number == len(self.places):
            with torch.no_grad():
                target = self.teacher(pixels)
            return distillation_loss(as_floats(self.student(pixels)), as_floats(target), TEMPERATURE)
        place = self.places[number]
        with torch.no_grad():
            theirs = run_until(self.teacher, place, pixels)
        return difference(place, run_until(self.student, place, pixels), theirs)

    def rate(self, done: float) -> float:
        return warm_cosine(done * len(self.parameters) % 1.0)


def blocks(student: nn.Module, teacher: Teacher, pictures: Inputs) -> Objective:
    """Return the objective. See `pipeline.training.recover.objective.Method`."""
    found = find_places(student, teacher, pictures)
    *before, after = parameters_before(student, found, pictures)
    learning = [(place, parameters) for place, parameters in zip(found, before, strict=True) if parameters]
    places = tuple(place for place, _ in learning)
    return _Blocks(student, teacher.module, places, (*(parameters for _, parameters in learning), *([after] if after else [])))
