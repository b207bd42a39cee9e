"""Supernet: one set of weights for every plan. It ranks plans for which plainly cut weights score no better than chance.

The dense network is trained further, and at every step it is pruned to another plan (Yu & Huang, Universally Slimmable
Networks, arXiv 1903.05134, sections 3.2 and 3.4, without their fixed rule for the widths). What one plan learns helps all plans
that share its channels. The targets are the dense network's answers, so no labels are needed. A plan's initial weights are then
cut from the supernet, and fine-tuning starts from them.

Differences from the paper: widths are drawn per group, and a step uses one plan, not four.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import compute_device, work_factor
from pipeline.core.plan import ChannelPlan, Kept, PruneSpace
from pipeline.core.progress import Progress, no_progress
from pipeline.data.images import Images
from pipeline.errors import TrainingDiverged
from pipeline.graph.shrink import scatter_gradients, shrink
from pipeline.search.problem import SearchSpace
from pipeline.system.files import write_atomically
from pipeline.system.safetensors_file import read_tensors
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.divergence import LOWER, MOST_RETREATS, all_finite, has_diverged, reference_loss
from pipeline.training.epochs import distillation_loss
from pipeline.training.execution_mode import layout_of, train_mode

__all__ = ["BATCH", "IMAGES", "MOST_STEPS", "Schedule", "affordable_steps", "middle_share", "plans_around", "train_supernet"]

BATCH = 64
MOST_STEPS = 2000
FEWEST_STEPS = 100
"""With fewer steps, every plan is worse than its cut with least-squares reconstruction."""
MACS = 2e13
"""Multiply-accumulates of all steps together, including the teacher's. They take some minutes on two cores; a GPU gets more."""
MOST_EPOCHS = 40
"""Limit on the passes over a small data set."""
NARROWEST = 0.3
"""Mean width of the narrowest plans drawn, as a share of that of the uniform plan that just meets the budget."""
MOST_DROPPED = 0.5
"""Largest probability with which a block is dropped."""
LEARNING_RATE = 0.05
"""Peak learning rate. It falls linearly to nearly zero."""
WARMUP_STEPS = 50
TEMPERATURE = 4.0
LARGEST_GRADIENT = 10.0
STEPS_PER_STAGE = 100
"""The weights are saved after this many steps. Training that diverges continues from them."""
IMAGES = MOST_STEPS * BATCH
"""Largest number of training images."""


def affordable_steps(middle: int, dense: int, images: int) -> int:
    """The number of steps that pay, or 0 if there would be too few. `middle` is the number of multiply-accumulates of a plan of
    middle width, and `dense` that of the dense network.
    """
    steps = min(
        MOST_STEPS, int(work_factor(compute_device()) * MACS / (BATCH * (3 * middle + dense))), MOST_EPOCHS * images // BATCH
    )
    return steps if steps >= FEWEST_STEPS else 0


def middle_share(share: float) -> float:
    """The middle of the range of mean widths that `plans_around` draws from."""
    return (NARROWEST * share + 1.0) / 2


def plans_around(space: SearchSpace, share: float, seed: int) -> Iterator[ChannelPlan]:
    """Endless random plans, from narrower than all groups at `share` up to the dense network. A quarter of them are uniform.

    Blocks are dropped at random, with a probability that is drawn for each plan.

    Without the wide plans, narrow plans forget what they learnt, and all plans end up worse.
    """
    generator = np.random.default_rng(seed)
    count = len(space.choices)
    blocks = np.asarray([choice.is_block for choice in space.choices])
    while True:
        mean = generator.uniform(NARROWEST * share, 1.0)
        shape = generator.uniform(0.5, 1.5, count) if generator.uniform() > 0.25 else np.ones(count)
        fractions = np.clip(mean * shape / shape.mean(), 0, 1)
        if blocks.any():
            fractions[blocks] = generator.uniform(size=count)[blocks] >= generator.uniform(0, MOST_DROPPED)
        yield space.plan(fractions.tolist())


@dataclass(frozen=True)
class Schedule:
    """Which plans a supernet is trained with, one per step."""

    plans: Iterator[Kept]
    steps: int


def train_supernet(
    dense: nn.Module,
    space: PruneSpace,
    schedule: Schedule,
    images: Images,
    checkpoint: Path,
    progress: Progress = no_progress,
) -> nn.Module:
    """A copy of `dense`, trained for `schedule.steps` batches of 64 images, each pruned to the next plan.

    The result is saved to `checkpoint`. If that file exists, it is loaded. If training diverges, it goes back up to 100 steps and
    continues with a tenth of the learning rate, at most three times. Raises TrainingDiverged and StorageError.
    """
    plans, steps = schedule.plans, schedule.steps
    if checkpoint.is_file():
        return _from_checkpoint(dense, checkpoint)
    device = compute_device()
    supernet, teacher = copy.deepcopy(dense).to(device), copy.deepcopy(dense).to(device).eval()
    parameters = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    batches = _with_teacher_outputs(teacher, images, device)
    torch.manual_seed(0)  # for dropout
    good, good_step, retreats = copy.deepcopy(supernet.state_dict()), 0, 0
    losses, reference, step = list[float](), math.inf, 0
    while step < steps:
        rate = LEARNING_RATE * LOWER**retreats * min(1.0, (step + 1) / WARMUP_STEPS) * max(1 - step / steps, 0.02)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels, answers = next(batches)
        losses.append(_step(supernet, optimizer, (space, next(plans)), pixels, answers))
        if reference == math.inf:
            chance_level = float(distillation_loss(torch.zeros_like(answers), answers, TEMPERATURE))
            reference = reference_loss(losses[0], chance_level, answers.shape[1])
        step += 1
        stage = step % STEPS_PER_STAGE == 0 or step == steps
        if has_diverged(losses, reference) or (stage and not all_finite(supernet)):
            if retreats == MOST_RETREATS:
                raise TrainingDiverged(
                    f"the supernet's training diverged at step {step} of {steps}, also with a learning rate of {rate:.2g}: the "
                    f"loss was {losses[-1]:.3g}; use --supernet 0 to search without one"
                )
            retreats, step, losses = retreats + 1, good_step, []
            supernet.load_state_dict(good)
            optimizer.state.clear()
            continue
        if stage:
            good, good_step = copy.deepcopy(supernet.state_dict()), step
        progress(step, steps, "supernet training")
    supernet = supernet.cpu().eval()
    # clones: if two names share one tensor, safetensors refuses to write it; it also refuses tensors with gaps
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in supernet.state_dict().items()}
    write_atomically(checkpoint, safetensors.torch.save(tensors))
    return supernet


def _step(
    supernet: nn.Module,
    optimizer: torch.optim.SGD,
    pruning: tuple[PruneSpace, Kept],
    pixels: Inputs,
    answers: torch.Tensor,
) -> float:
    """Train the weights that `pruning` keeps for one step towards the teacher's `answers`. Returns the loss before it."""
    small = shrink(supernet, *pruning).to(memory_format=layout_of(supernet))
    train_mode(small)
    with mixed_precision(answers.device):
        logits = small(pixels)
    loss = distillation_loss(logits.float(), answers, TEMPERATURE)
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    scatter_gradients(small, supernet, *pruning)
    torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
    optimizer.step()
    return float(loss.detach())


def _from_checkpoint(dense: nn.Module, checkpoint: Path) -> nn.Module:
    """A copy of `dense` with the weights from `checkpoint`."""
    supernet = copy.deepcopy(dense)
    supernet.load_state_dict(read_tensors(checkpoint))
    return supernet.eval()


def _with_teacher_outputs(teacher: nn.Module, images: Images, device: torch.device) -> Iterator[tuple[Inputs, torch.Tensor]]:
    """Endless batches with the teacher's answers. The teacher computes each batch once."""
    known: list[torch.Tensor] = []
    # whole batches only: BatchNorm in training mode cannot learn from a last batch of a single image
    count = max(len(images) // BATCH, 1)
    while True:
        for number, (pixels, _) in zip(range(count), images.batches(BATCH, device), strict=False):
            placed = pixels.to(device, memory_format=layout_of(teacher))
            if number == len(known):
                with torch.no_grad():
                    known.append(teacher(placed).float())
            yield placed, known[number]
