"""MiR, rebuilt from the paper (Wang et al., CVPR 2022, arXiv 2201.02620), for `few.py`.

The pruned network learns the dense network's last features before pooling by their mean squared difference. The classifier is
frozen. Optimizer, rate, its steps, weight decay and batch size are the defaults of the authors' follow-up, PRACTISE (CVPR 2023,
arXiv 2202.07861). If the pruned network has fewer features there, those that were kept are compared, as in this project.
"""

import copy
from itertools import chain, count, islice

import torch
from torch import nn

from pipeline.data.images import Images
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.execution_mode import layout_of
from pipeline.training.recover.features import find_places, parameters_before, run_until
from pipeline.training.scoring import recalibrate
from pipeline.training.teacher import Teacher

__all__ = ["mir"]

BATCH, RATE, MOMENTUM, WEIGHT_DECAY = 64, 0.02, 0.9, 1e-4
LOWERED_AFTER = 0.4
"""The rate is lowered to a tenth after each such share of the steps."""


def mir(student: nn.Module, teacher: Teacher, train: Images, steps: int, seed: int) -> nn.Module:
    """Return a copy of `student` after `steps` steps on `train`. BatchNorm statistics are estimated again at the end.

    Raises ValueError if the two networks have no such features in common.
    """
    learner = copy.deepcopy(student).to(memory_format=layout_of(student))
    few = next(train.batches(4))[0]
    places = [place for place in find_places(learner, teacher, few) if place.pooled]
    if not places:
        raise ValueError("the network has no features before its pooling that can be compared")
    place = places[-1]
    before, _ = parameters_before(learner, [place], few)
    optimizer = torch.optim.SGD(before, lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    epochs = (train.training_batches(min(BATCH, len(train)), seed, epoch) for epoch in count())
    learner.train()
    for step, (pixels, _) in enumerate(islice(chain.from_iterable(epochs), steps)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1 ** int(step / max(LOWERED_AFTER * steps, 1))
        placed = pixels.contiguous(memory_format=layout_of(student))
        with mixed_precision(torch.device("cpu")):
            with torch.no_grad():
                dense = run_until(teacher.module, place, placed).float()
            pruned = run_until(learner, place, placed).float()
            kept = dense if place.kept is None else dense[:, list(place.kept)]
            loss = nn.functional.mse_loss(pruned, kept)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    varied = train.training_batches(train.evaluation_size, seed, 0)  # the weights were learned with statistics of such pictures
    recalibrate(learner, (pixels for pixels, _ in varied))
    return learner.eval()
