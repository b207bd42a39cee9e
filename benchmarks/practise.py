"""PRACTISE's choice of blocks, rebuilt from the paper (Wang & Wu, CVPR 2023, arXiv 2202.07861), for `depth.py`.

The recoverability of a block is the mean squared difference of the features before pooling, between the dense network and the
network without the block, after 1x1 convolutions (or linear layers) around the gap have been trained: in front of the layers
that read the block's stage after it, and behind those that write to the stage before it. All else is frozen. The blocks with the
smallest recoverability per saved latency are dropped.

The authors' code trains each block's adaptors for 1,000 steps on a GPU. Here they are trained for STEPS steps, so the estimates
are rougher than theirs. Their network stays in evaluation mode; here its BatchNorm statistics are estimated again once before.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, count, islice

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.plan import Block
from pipeline.data.images import Images
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.recover.features import Place, find_places, run_until
from pipeline.training.scoring import recalibrate
from pipeline.training.teacher import Teacher

__all__ = ["STEPS", "recoverabilities"]

STEPS, BATCH = 20, 32
RATE, MOMENTUM = 0.02, 0.9
LOWERED_AFTER = 0.4
"""The rate is lowered to a tenth after each such share of the steps."""


def recoverabilities(builder: PrunedModelBuilder, train: Images, seed: int, steps: int = STEPS) -> dict[str, float]:
    """Return the recoverability of each block that can be dropped, by its name. Smaller is better."""
    found = {}
    for block in builder.space.blocks:
        student = builder.make(builder.space.plan(dict(builder.space.dense()), [block.name])).module
        recalibrate(student, (pixels for pixels, _ in train.batches()))
        found[block.name] = _recoverability(copy.deepcopy(student).eval(), builder, block, train, seed, steps)
    return found


def _recoverability(student: nn.Module, builder: PrunedModelBuilder, block: Block, train: Images, seed: int, steps: int) -> float:
    teacher = Teacher(builder.module.eval())
    places = [place for place in find_places(student, teacher, next(train.batches(4))[0]) if place.pooled]
    if not places:
        raise ValueError("the network has no features before its pooling that can be compared")
    with _adaptors(student, builder, block) as adaptors:
        parameters = [adaptor.weight for adaptor in adaptors]
        optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=MOMENTUM)
        epochs = (train.training_batches(min(BATCH, len(train)), seed, epoch) for epoch in count())
        for step, (pixels, _) in enumerate(islice(chain.from_iterable(epochs), steps)):
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.1 ** int(step / max(LOWERED_AFTER * steps, 1))
            optimizer.zero_grad()
            _difference(student, teacher.module, places[-1], pixels).backward()
            optimizer.step()
        with torch.no_grad():
            parts = [
                (len(pixels), float(_difference(student, teacher.module, places[-1], pixels))) for pixels, _ in train.batches()
            ]
    return sum(size * value for size, value in parts) / sum(size for size, _ in parts)


def _difference(student: nn.Module, dense: nn.Module, place: Place, pixels: Inputs) -> Tensor:
    with mixed_precision(torch.device("cpu")):
        with torch.no_grad():
            wanted = run_until(dense, place, pixels).float()
        return nn.functional.mse_loss(run_until(student, place, pixels).float(), wanted)


@contextmanager
def _adaptors(student: nn.Module, builder: PrunedModelBuilder, block: Block) -> Iterator[list[nn.Conv2d | nn.Linear]]:
    """Put 1x1 convolutions around the gap that `block` leaves, which change nothing yet. They are removed at the end.

    The modules of the network must be defined in the order in which they run.
    """
    student.requires_grad_(False)
    layers = dict(student.named_modules())
    order = {f"{name}.weight": number for number, (name, _) in enumerate(builder.module.named_modules())}
    own = set(block.tensors)
    gap = max(order[tensor] for tensor in own & order.keys())
    stage = next(
        group
        for group in builder.space.groups
        if any(slot.tensor in own for slot in group.slots) and not all(slot.tensor in own for slot in group.slots)
    )
    made: list[nn.Conv2d | nn.Linear] = []
    with ExitStack() as stack:
        for slot in stage.slots:
            layer = layers.get(slot.tensor.rpartition(".")[0])
            if not isinstance(layer, (nn.Conv2d, nn.Linear)) or getattr(layer, "groups", 1) > 1 or slot.tensor in own:
                continue
            behind = order.get(slot.tensor, gap) > gap
            if behind and slot.axis == 1:
                made.append(_identity(layer, layer.weight.shape[1]))
                hook = layer.register_forward_pre_hook(lambda _, read, adaptor=made[-1]: (adaptor(read[0]),))
            elif slot.tensor in order and not behind and slot.axis == 0:
                made.append(_identity(layer, layer.weight.shape[0]))
                hook = layer.register_forward_hook(lambda _, read, result, adaptor=made[-1]: adaptor(result))
            else:
                continue
            stack.callback(hook.remove)
        yield made


def _identity(layer: nn.Conv2d | nn.Linear, channels: int) -> nn.Conv2d | nn.Linear:
    """A layer of the same kind that returns its input."""
    if isinstance(layer, nn.Linear):
        made: nn.Conv2d | nn.Linear = nn.Linear(channels, channels, bias=False)
    else:
        made = nn.Conv2d(channels, channels, 1, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.eye(channels).view_as(made.weight))
    return made
