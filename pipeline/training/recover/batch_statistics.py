"""Batch statistics: whether BatchNorm layers keep their statistics during a training from few pictures, from one measurement.

With the statistics of each batch, a network learns faster, and high rates are safe. But the statistics of a small batch differ
from those with which the dense network answers, so its outputs differ during training. How much is measured on the dense network.
If that is not small compared with the error that training is to reduce, the layers keep their statistics.
"""

import copy
from itertools import islice

import torch

from pipeline.training.epochs import TrainingSetup, distillation_loss
from pipeline.training.execution_mode import train_norms
from pipeline.training.relative_error import as_floats
from pipeline.training.statistics_shift import norms_of

__all__ = ["keeps_statistics", "noise_of_batches"]

MEASURED_BATCHES = 2
MOST_NOISE = 0.5
"""Largest noise of batch statistics, as a share of the pruned network's distance to the dense one, with which they are used."""


def noise_of_batches(setup: TrainingSetup, batch_size: int) -> float:
    """Return the distance of the dense network's outputs with the statistics of each batch to those with its own statistics.

    It is the mean over batches of training pictures as they are, as for validation. 0 without BatchNorm layers or a teacher.
    """
    if setup.teacher is None or not norms_of(setup.teacher):
        return 0.0
    by_batch, found = copy.deepcopy(setup.teacher), list[float]()
    train_norms(by_batch)
    with torch.inference_mode():
        for pixels, _ in islice(setup.train.batches(batch_size), MEASURED_BATCHES):
            placed = setup.placed(pixels, setup.teacher)
            if len(pixels) == batch_size or not found:
                ours, own = as_floats(by_batch(placed)), as_floats(setup.teacher(placed))
                found.append(float(distillation_loss(ours, own, setup.settings.temperature)))
    return sum(found) / len(found)


def keeps_statistics(setup: TrainingSetup, batch_size: int, distance: float) -> bool:
    """Whether BatchNorm layers keep their statistics in training. `distance` is that of the pruned network's outputs."""
    return noise_of_batches(setup, batch_size) > MOST_NOISE * distance
