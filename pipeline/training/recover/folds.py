"""Folds: with very few validation pictures, trials are cross-validated, so that a few pictures do not decide alone."""

from dataclasses import replace

import torch

from pipeline.training.epochs import TrainingSetup
from pipeline.training.scoring import calibration_images

__all__ = ["ENOUGH", "folds"]

ENOUGH = 20
"""With so many validation pictures, trials are not cross-validated."""
MOST_FOLDS = 3


def folds(setup: TrainingSetup) -> tuple[TrainingSetup, ...]:
    """Return `setup`, and with very few validation pictures further setups in which others are held out.

    In each further setup, as many training pictures are for validation, and the validation pictures are trained on. At least half
    of all pictures are always trained on. Pictures without labels get the label 0, because labels are not used.
    """
    size, count = len(setup.validation), len(setup.train)
    if size >= ENOUGH:
        return (setup,)
    train, validation = (replace(images, labels=images.labels.clamp(min=0)) for images in (setup.train, setup.validation))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(setup.seed))
    others = []
    for number in range(min(MOST_FOLDS - 1, count // (2 * size))):
        held_out = order[number * size : (number + 1) * size]
        rest = train.subset(order[~torch.isin(order, held_out)]).joined(validation)
        others.append(
            replace(setup, train=rest, validation=train.subset(held_out), calibration=calibration_images(rest, setup.seed))
        )
    return (setup, *others)
