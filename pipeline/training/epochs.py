"""Epochs: the learning-rate schedule, one epoch of training, and validation with re-estimated BatchNorm statistics."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pipeline.core.batch import Inputs, Outputs
from pipeline.core.compute_device import compute_device
from pipeline.data.images import Images, evaluation_size
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.divergence import reference_loss
from pipeline.training.execution_mode import layout_of, train_mode
from pipeline.training.losses import as_logits, distillation_loss, training_loss
from pipeline.training.optimizers import average_of, optimizer_of
from pipeline.training.relative_error import as_floats, is_classifier, sample_agreement, spreads_of
from pipeline.training.scoring import calibration_images, recalibrate
from pipeline.training.settings import FinetuneSettings, ScheduleShape
from pipeline.training.statistics_shift import shifts_of

__all__ = [
    "Learner",
    "TrainingSetup",
    "Validation",
    "as_logits",
    "distillation_loss",
    "initial_reference_loss",
    "learner_of",
    "schedule",
    "train_epoch",
    "training_loss",
    "validated",
    "validated_as_it_is",
    "validated_start",
]

OVER_EVALUATION = 2
"""How many times as much memory an image takes in training as in evaluation, because the features of all layers are kept."""


@dataclass(frozen=True)
class TrainingSetup:
    """The data, settings and teacher of one training."""

    teacher: nn.Module | None
    """The teacher, in evaluation mode, on `device`. None: only labels are used."""
    train: Images
    validation: Images
    settings: FinetuneSettings
    batch_size: int
    seed: int
    calibration: Images
    """Images on which BatchNorm statistics are estimated."""
    augmented: bool = False
    """Whether the calibration images are augmented as in training."""
    device: torch.device = field(default_factory=compute_device)

    @classmethod
    def of(
        cls,
        teacher: nn.Module | None,
        images: tuple[Images, Images],
        settings: FinetuneSettings,
        batch_size: int,
        seed: int,
    ) -> "TrainingSetup":
        """Make a setup from `images`, the training and validation images. The teacher is copied."""
        train, validation = images
        setup = cls(None, train, validation, settings, batch_size, seed, calibration_images(train, seed))
        if teacher is None or not settings.distillation:
            return setup
        placed = copy.deepcopy(teacher).to(setup.device).to(memory_format=layout_of(teacher)).eval()
        return cls(placed, train, validation, settings, batch_size, seed, setup.calibration)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return math.ceil(len(self.train) / self.batch_size)

    @cached_property
    def validation_targets(self) -> list[Outputs | None]:
        """The teacher's outputs for each batch of the validation images, such as logits, (N, classes). None without a teacher."""
        if self.teacher is None:
            return [None] * math.ceil(len(self.validation) / self.validation.evaluation_size)
        with torch.inference_mode():
            batches = self.validation.batches(device=self.device)
            return [self.teacher(self.placed(pixels, self.teacher)) for pixels, _ in batches]

    @cached_property
    def validation_spreads(self) -> tuple[float, ...]:
        """The spread of each of the teacher's outputs; see `pipeline.training.relative_error`."""
        return spreads_of(target for target in self.validation_targets if target is not None)

    def placed(self, pixels: Inputs, module: nn.Module) -> Inputs:
        """Return `pixels` on `device`, in the memory layout of `module`."""
        return pixels.to(self.device, memory_format=layout_of(module))


@dataclass(frozen=True)
class Validation:
    """How well a network does on the validation images."""

    accuracy: float
    """In percent. Of outputs that are no scores of classes, it is the agreement with the teacher."""
    loss: float
    """Mean of `training_loss`. Infinite if it is not a number."""

    def is_better_than(self, other: "Validation") -> bool:
        """Whether the accuracy is higher, or equal with a lower loss. Accuracies are often equal where images are few."""
        return (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True)
class Learner:
    """A network, which is trained in place, and its optimizer."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the best network so far, on the CPU."""
    average: AveragedModel | None = None
    """A moving average of the weights, if there is one."""

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and shipped: the average of the weights, or the network itself."""
        averaged: nn.Module = self.module if self.average is None else self.average.module
        return averaged

    def keep_as_best(self) -> None:
        """Store the present state of the judged network as the best one."""
        self.best.update((name, tensor.detach().cpu().clone()) for name, tensor in self.judged.state_dict().items())

    def finished(self) -> nn.Module:
        """Return the best network, on the CPU, in evaluation mode and in the usual memory layout."""
        self.module.load_state_dict(self.best)
        return self.module.cpu().to(memory_format=torch.contiguous_format).eval()

    def return_to_best(self) -> None:
        """Restore the best state of the network, and reset the momenta of the optimizer and the average."""
        self.module.load_state_dict(self.best)
        self.optimizer.state.clear()
        if self.average is not None:
            self.average.module.load_state_dict(self.best)
            self.average.n_averaged.zero_()


def learner_of(student: nn.Module, setup: TrainingSetup) -> Learner:
    """Return a copy of `student` on the device of `setup`, with a new optimizer."""
    module = copy.deepcopy(student).to(setup.device).to(memory_format=layout_of(student))
    return Learner(module, optimizer_of(module, setup.settings), average=average_of(module, setup.settings))


def validated_start(learner: Learner, setup: TrainingSetup) -> tuple[TrainingSetup, Validation]:
    """Validate the network before training, and keep it as the best. Returns the setup with the better BatchNorm statistics.

    A network that was trained on augmented images needs the statistics of such images; only validation shows whether it was.
    Statistics that are corrected by the dense network's own need no such trial.
    """
    found = validated(learner.judged, setup)
    learner.keep_as_best()
    if setup.calibration.preprocessing.augment and not shifts_of(learner.module):
        other = replace(setup, augmented=True)
        other_found = validated(learner.judged, other)
        if other_found.is_better_than(found):
            setup, found = other, other_found
            learner.keep_as_best()
    return setup, found


def train_epoch(
    learner: Learner, setup: TrainingSetup, epoch: int, rate: Callable[[int], float], done: int = 0
) -> Iterator[float]:
    """Train for epoch number `epoch`, counted from 0, and yield the loss of each step.

    `rate` maps a step of the epoch, counted from 0, to a learning rate. Batches and dropout depend only on seed and epoch. The
    first `done` steps are left out. Then the caller restores torch's generators, from which dropout draws.
    """
    if not done:
        torch.manual_seed(1_000_003 * setup.seed + epoch)  # for dropout
    train_mode(learner.module)
    batches = setup.train.training_batches(setup.batch_size, setup.seed, epoch, setup.device, done)
    for step, (images, labels) in enumerate(batches, start=done):
        for group in learner.optimizer.param_groups:
            group["lr"] = rate(step)
        learner.optimizer.zero_grad()
        loss = 0.0
        for part in _parts(images, setup.device):
            logits, target = _answers(learner.module, setup, images[part])
            share = len(labels[part]) / len(labels)
            part_loss = share * training_loss(logits, target, labels[part].to(setup.device), setup.settings)
            part_loss.backward()
            loss += float(part_loss.detach())
        learner.optimizer.step()
        if learner.average is not None:
            learner.average.update_parameters(learner.module)
        yield loss


def _parts(images: Inputs, device: torch.device) -> Iterator[slice]:
    """Parts of a batch, of nearly equal sizes, whose gradients are added up. On a processor, large images come in several parts,
    because the activations of a whole batch would need gigabytes. A GPU gets the whole batch.
    """
    total = len(images)
    count = math.ceil(total / evaluation_size(OVER_EVALUATION * images[:1].numel())) if device.type == "cpu" else 1
    for number in range(count):
        yield slice(total * number // count, total * (number + 1) // count)


def validated(module: nn.Module, setup: TrainingSetup) -> Validation:
    """Re-estimate the BatchNorm statistics in place, and validate the network.

    Training uses the statistics of each batch, so the weights do not depend on this estimate.
    """
    images = setup.calibration
    if setup.augmented:
        batches = images.training_batches(images.evaluation_size, setup.seed, 0, setup.device)
    else:
        batches = images.batches(device=setup.device)
    recalibrate(module, (pixels.to(setup.device) for pixels, _ in batches))
    return validated_as_it_is(module, setup)


def validated_as_it_is(module: nn.Module, setup: TrainingSetup) -> Validation:
    """Validate the network with the BatchNorm statistics that it has. Sets evaluation mode."""
    module.eval()
    right, loss = 0.0, 0.0
    with torch.inference_mode():
        batches = setup.validation.batches(device=setup.device)
        for (pixels, labels), target in zip(batches, setup.validation_targets, strict=True):
            logits, classes = module(setup.placed(pixels, module)), labels.to(setup.device)
            if is_classifier(logits) or target is None:
                right += int((logits.argmax(1) == classes).sum())
            else:
                right += float(sample_agreement(logits, target, setup.validation_spreads).sum()) / 100.0
            loss += float(training_loss(logits, target, classes, setup.settings)) * len(labels)
    count = len(setup.validation)
    return Validation(100.0 * (right / count), loss / count if math.isfinite(loss) else math.inf)


def initial_reference_loss(module: nn.Module, setup: TrainingSetup) -> float:
    """Return the `reference_loss` for training `module`, computed on the first batch of the first epoch."""
    torch.manual_seed(setup.seed)  # for dropout
    images, labels = next(setup.train.training_batches(setup.batch_size, setup.seed, 0))
    learning = copy.deepcopy(module)
    train_mode(learning)
    with torch.no_grad():
        logits, target = _answers(learning, setup, images)
        labels = labels.to(setup.device)
        start = float(training_loss(logits, target, labels, setup.settings))
        if not isinstance(logits, Tensor) or not is_classifier(logits):
            return reference_loss(start, 1.0, 2)  # outputs that are always the mean have a loss of 1
        chance_level = float(training_loss(torch.zeros_like(logits), target, labels, setup.settings))
    return reference_loss(start, chance_level, logits.shape[1])


def _answers(module: nn.Module, setup: TrainingSetup, images: Inputs) -> tuple[Outputs, Outputs | None]:
    """Outputs of `module` and of the teacher, such as logits, (N, classes), as float32. They are computed in bfloat16 where that
    is faster.
    """
    pixels = setup.placed(images, module)
    with mixed_precision(setup.device):
        outputs: Outputs = module(pixels)
        with torch.no_grad():
            target = setup.teacher(pixels) if setup.teacher else None
    return as_floats(outputs), None if target is None else as_floats(target)


def schedule(epoch: float, epochs: float, shape: ScheduleShape = "cosine", warmup_epochs: float = 1.0) -> float:
    """Return the share of the peak rate at `epoch`. The warm-up takes at most half of `epochs`; then the rate falls to zero."""
    warmup = min(warmup_epochs, epochs / 2)
    if epoch < warmup:
        return max(epoch / warmup, 0.01)
    done = (epoch - warmup) / (epochs - warmup)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[shape]
