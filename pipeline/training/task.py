"""Task: how a network is scored, trained and tested, for classification or with the user's own functions."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import placed
from pipeline.core.paired_difference import Scores
from pipeline.core.progress import Progress, count_images, no_progress
from pipeline.data.images import Images, Splits
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.execution_mode import layout_of
from pipeline.training.finetune import Finetuned, Tracking, TrainingData, finetune
from pipeline.training.folded_norms import folded
from pipeline.training.learning_rates import fitting_batch_size
from pipeline.training.own_task import REHEARSAL_IMAGES, BetweenBatches, OwnTask
from pipeline.training.recover.methods import MethodName, methods_of
from pipeline.training.recover.recover import recover
from pipeline.training.scoring import Score, accuracy, calibration_images, hits, recalibrate
from pipeline.training.settings import FinetuneSettings, Recovery
from pipeline.training.teacher import Teacher

__all__ = ["Classification", "OwnTask", "Task"]

SCORING_IMAGES = 2000
"""Number of validation images that score a candidate. Fine-tuning uses all of them to choose the epoch."""
STATISTICS_IMAGES = 128
"""Number of training images from which a score estimates BatchNorm statistics. More hardly change the order of plans; see
docs/benchmarks/score-cost.md. Fine-tuning uses more.
"""
REHEARSAL_RATE = 1e-3
"""Small enough for any network. A rehearsal only checks that training runs."""


class Task(Protocol):
    """The user's problem: its data, its score and its training."""

    @property
    def description(self) -> str:
        """Description of the data. It is part of a run's identity."""

    def example(self) -> Inputs:
        """Return one real sample as a batch, (1, C, H, W), or a `Batch` for a network with several inputs."""

    def inputs(self, count: int) -> Inputs:
        """Return at most `count` real samples, (N, C, H, W). None of them are test data."""

    def calibration(self, progress: Progress = no_progress, *, labelled: bool = False) -> Iterable[tuple[Inputs, Tensor]]:
        """Return a few batches of (inputs, labels) from the training data. `progress` is called when one of them was used.

        Inputs without a label have the label -1. With `labelled`, there are none of these.
        """

    def statistics_images(self) -> Iterable[Inputs]:
        """Return the batches of inputs, (N, C, H, W), from which `score` estimates BatchNorm statistics."""

    @property
    def chance_level(self) -> float:
        """Score of a network that has learned nothing."""

    @property
    def few_pictures(self) -> bool:
        """Whether a network is recovered without labels, because there are few pictures to train with. Then channels are ranked
        by the error of their reconstruction, and BatchNorm statistics are corrected by the dense network's own.
        """

    @property
    def score_name(self) -> str:
        """What the score is: accuracy, or agreement with the dense network where there are no labels."""

    def distillation_images(self, count: int) -> Images | None:
        """Return at most `count` training images for distillation, or None if the task does not support it."""

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """Re-estimate BatchNorm statistics, and return the score on validation data; higher is better.

        `between` is called between batches.
        """

    def score_against(self, module: nn.Module, to_beat: float | None, between: BetweenBatches = lambda: None) -> Score:
        """Return the score of a trial of the search, as `score`. `to_beat` is the best score of a plan within the budget, if any.

        The score of a network that clearly does not reach it may come from fewer images.
        """

    def validate(self, module: nn.Module, progress: Progress = no_progress) -> float:
        """Return the score of a finished network on all validation data. `progress` counts the images."""

    def test(self, module: nn.Module, progress: Progress = no_progress) -> Scores:
        """Return the scores of a finished network on test data. Called at the very end, once per reported network.

        `progress` counts the images.
        """

    @property
    def test_images(self) -> int | None:
        """Number of images that `test` uses; None if unknown."""

    @property
    def tests_each_image(self) -> bool:
        """Whether `test` gives one value per image. Without these, an accuracy drop has no confidence interval."""

    def finetune(
        self, student: nn.Module, teacher: nn.Module | Teacher, seed: int, checkpoint: Path, progress: Progress
    ) -> Finetuned:
        """Return a trained copy of `student`. On validation data it is never worse than `student` after `score`."""

    @property
    def training_plan(self) -> str:
        """How `finetune` trains, in a few words."""

    def rehearsal(self) -> "Task":
        """Return a small version of the task. It uses the real batch sizes, takes seconds and has no test data."""


@dataclass(frozen=True)
class Classification:
    """Top-1 accuracy in percent on labelled images."""

    splits: Splits
    settings: FinetuneSettings
    seed: int

    @property
    def description(self) -> str:
        """Description of the images."""
        return self.splits.description

    def example(self) -> Inputs:
        """See `Task`."""
        return self.inputs(1)

    def inputs(self, count: int) -> Inputs:
        """See `Task`."""
        return next(self.splits.pictures.sample(count, seed=0).batches(count))[0]

    def calibration(self, progress: Progress = no_progress, *, labelled: bool = False) -> Iterable[tuple[Inputs, Tensor]]:
        """See `Task`."""
        images = calibration_images(self.splits.train if labelled else self.splits.pictures, self.seed)
        return count_images(images.batches(), len(images), "statistics of the dense network", progress)

    def statistics_images(self) -> Iterable[Inputs]:
        """See `Task`."""
        return (pixels for pixels, _ in self._statistics_images().batches())

    @property
    def few_pictures(self) -> bool:
        """See `Task`."""
        return bool(self._methods())

    @property
    def score_name(self) -> str:
        """See `Task`."""
        return "accuracy" if self.splits.labelled else "agreement"

    @property
    def chance_level(self) -> float:
        """See `Task`. It is the accuracy of always predicting the most frequent class."""
        counts = self._scoring_images().label_counts()
        return 100.0 * float(counts.max() / counts.sum())

    def distillation_images(self, count: int) -> Images | None:
        """See `Task`."""
        return self.splits.pictures.sample(count, self.seed + 1)

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """See `Task`."""
        return self.score_against(module, None, between).value

    def score_against(self, module: nn.Module, to_beat: float | None, between: BetweenBatches = lambda: None) -> Score:
        """See `Task`."""
        images = self._scoring_images()
        module.to(memory_format=layout_of(module))
        with placed(module) as device, torch.no_grad(), mixed_precision(device):
            recalibrate(module, (pixels for pixels, _ in _pausing(self._statistics_images(), between)))
            with folded(module.eval()):
                found = hits(module, images, between=between, to_beat=to_beat)
        return Score(100.0 * float(found.mean()), len(found) if len(found) < len(images) else None)

    def validate(self, module: nn.Module, progress: Progress = no_progress) -> float:
        """See `Task`."""
        return accuracy(module, self.splits.validation, progress=progress)

    def test(self, module: nn.Module, progress: Progress = no_progress) -> Scores:
        """See `Task`."""
        each = np.where(hits(module, self.splits.test, progress=progress), 100.0, 0.0)
        return Scores(float(each.mean()), each)

    @property
    def test_images(self) -> int:
        """See `Task`."""
        return len(self.splits.test)

    @property
    def tests_each_image(self) -> bool:
        """See `Task`."""
        return True

    def finetune(
        self, student: nn.Module, teacher: nn.Module | Teacher, seed: int, checkpoint: Path, progress: Progress
    ) -> Finetuned:
        """See `Task`. With few training pictures, the network is recovered by a method that needs no labels."""
        teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
        tracking = Tracking(checkpoint, progress)
        if self._methods():
            data = TrainingData(self.splits.pictures, self.splits.validation)
            return recover(student, teacher, data, self.settings, seed, tracking)
        data = TrainingData(self.splits.train, self.splits.validation)
        return finetune(student, teacher.module, data, self.settings, seed, tracking)

    @property
    def training_plan(self) -> str:
        """See `Task`."""
        settings, methods = self.settings, self._methods()
        if not methods:
            return f"{settings.whole_epochs} epochs"
        length = f"up to {settings.minutes:g} minutes" if settings.epochs is None else f"{settings.epochs} epochs"
        return f"recover the network by {' or '.join(methods)} from {len(self.splits.pictures)} pictures, {length}"

    @property
    def counts_steps(self) -> bool:
        """Whether training counts steps within a time limit, because there are few pictures, and not epochs."""
        return bool(self._methods())

    def _methods(self) -> tuple[MethodName, ...]:
        return methods_of(self.settings, len(self.splits.pictures))

    def rehearsal(self) -> "Classification":
        """See `Task`. It trains on a full batch and the last, shorter one. A few validation images also serve as test data."""
        train = self.splits.train
        size = self.settings.batch_size or fitting_batch_size(len(train))
        few = train.sample(min(len(train), size + len(train) % size), self.seed)
        recovery: Recovery = next(iter(self._methods()), "none")
        validation = self.splits.validation.sample(REHEARSAL_IMAGES, self.seed)
        splits = replace(self.splits, train=few, validation=validation, test=validation, unlabelled=None)
        settings = replace(self.settings, epochs=1, batch_size=size, learning_rate=REHEARSAL_RATE, recover=recovery)
        return replace(self, splits=splits, settings=settings)

    def _statistics_images(self) -> Images:
        """With few pictures all of them, because the dense network's statistics on the same pictures correct the estimates."""
        images = calibration_images(self.splits.pictures, self.seed)
        return images if self.few_pictures else images.subset(torch.arange(min(STATISTICS_IMAGES, len(images))))

    def _scoring_images(self) -> Images:
        """Of few images whose labels are the dense network's answers, those for training score too: nothing is trained yet."""
        images = self.splits.validation
        if self.few_pictures and not self.splits.labelled:
            images = images.joined(self.splits.train)
        return images.sample(SCORING_IMAGES, self.seed)


def _pausing(images: Images, between: BetweenBatches) -> Iterable[tuple[Inputs, Tensor]]:
    for batch in images.batches():
        between()
        yield batch
