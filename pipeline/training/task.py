"""Task: how a network is scored, trained and tested, for classification or with the user's own functions."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pipeline.core.paired_difference import Scores
from pipeline.data.images import Images, Splits
from pipeline.errors import ModelError, one_line
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.execution_mode import layout_of
from pipeline.training.finetune import Finetuned, Progress, Tracking, TrainingData, finetune
from pipeline.training.learning_rates import fitting_batch_size
from pipeline.training.scoring import BATCH, CALIBRATION_BATCHES, accuracy, calibration_images, hits, recalibrate
from pipeline.training.settings import FinetuneSettings

__all__ = ["Classification", "OwnTask", "Task"]

SCORING_IMAGES = 2000
"""Number of validation images that score a candidate. Fine-tuning uses all of them to choose the epoch."""
REHEARSAL_IMAGES = 16
REHEARSAL_RATE = 1e-3
"""Small enough for any network. A rehearsal only checks that training runs."""

BetweenBatches = Callable[[], None]


class Task(Protocol):
    """The user's problem: its data, its score and its training."""

    @property
    def description(self) -> str:
        """Description of the data. It is part of a run's identity."""

    def example(self) -> Tensor:
        """Return one real input as a batch, (1, C, H, W)."""

    def inputs(self, count: int) -> Tensor:
        """Return at most `count` real inputs, (N, C, H, W). None of them are test data."""

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Return a few batches of (inputs, labels) from the training data."""

    @property
    def chance_level(self) -> float:
        """Score of a network that has learned nothing."""

    def distillation_images(self, count: int) -> Images | None:
        """Return at most `count` training images for distillation, or None if the task does not support it."""

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """Re-estimate BatchNorm statistics, and return the score on validation data; higher is better.

        `between` is called between batches.
        """

    def validate(self, module: nn.Module) -> float:
        """Return the score of a finished network on all validation data."""

    def test(self, module: nn.Module) -> Scores:
        """Return the scores of a finished network on test data. Called at the very end, once per reported network."""

    @property
    def test_images(self) -> int | None:
        """Number of images that `test` uses; None if unknown."""

    @property
    def tests_each_image(self) -> bool:
        """Whether `test` gives one value per image. Without these, an accuracy drop has no confidence interval."""

    def finetune(self, student: nn.Module, teacher: nn.Module, seed: int, checkpoint: Path, progress: Progress) -> Finetuned:
        """Return a trained copy of `student`. On validation data it is never worse than `student` after `score`."""

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

    def example(self) -> Tensor:
        """See `Task`."""
        return self.inputs(1)

    def inputs(self, count: int) -> Tensor:
        """See `Task`."""
        return next(self.splits.train.sample(count, seed=0).batches(count))[0]

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """See `Task`."""
        return self._calibration_images().batches(BATCH)

    @property
    def chance_level(self) -> float:
        """See `Task`. It is the accuracy of always predicting the most frequent class."""
        counts = self._scoring_images().label_counts()
        return 100.0 * float(counts.max() / counts.sum())

    def distillation_images(self, count: int) -> Images | None:
        """See `Task`."""
        return self.splits.train.sample(count, self.seed + 1)

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """See `Task`."""
        module.to(memory_format=layout_of(module))
        with mixed_precision(torch.device("cpu")):
            recalibrate(module, (pixels for pixels, _ in _pausing(self._calibration_images(), between)))
            return accuracy(module, self._scoring_images(), between=between)

    def validate(self, module: nn.Module) -> float:
        """See `Task`."""
        return accuracy(module, self.splits.validation)

    def test(self, module: nn.Module) -> Scores:
        """See `Task`."""
        each = np.where(hits(module, self.splits.test), 100.0, 0.0)
        return Scores(float(each.mean()), each)

    @property
    def test_images(self) -> int:
        """See `Task`."""
        return len(self.splits.test)

    @property
    def tests_each_image(self) -> bool:
        """See `Task`."""
        return True

    def finetune(self, student: nn.Module, teacher: nn.Module, seed: int, checkpoint: Path, progress: Progress) -> Finetuned:
        """See `Task`."""
        splits = self.splits
        return finetune(
            student, teacher, TrainingData(splits.train, splits.validation), self.settings, seed, Tracking(checkpoint, progress)
        )

    def rehearsal(self) -> "Classification":
        """See `Task`. It trains on a full batch and the last, shorter one. A few validation images also serve as test data."""
        train = self.splits.train
        size = self.settings.batch_size or fitting_batch_size(len(train))
        few = train.sample(min(len(train), size + len(train) % size), self.seed)
        validation = self.splits.validation.sample(REHEARSAL_IMAGES, self.seed)
        splits = replace(self.splits, train=few, validation=validation, test=validation)
        return replace(
            self, splits=splits, settings=replace(self.settings, epochs=1, batch_size=size, learning_rate=REHEARSAL_RATE)
        )

    def _calibration_images(self) -> Images:
        return calibration_images(self.splits.train, self.seed)

    def _scoring_images(self) -> Images:
        return self.splits.validation.sample(SCORING_IMAGES, self.seed)


@dataclass(frozen=True)
class OwnTask:
    """A task other than classification, defined by your own functions.

    >>> import torch
    >>> from pipeline import OwnTask
    >>> task = OwnTask(torch.rand(8, 3, 32, 32), evaluate=lambda module: 90.0, train=lambda module: module)
    >>> task.example().shape
    torch.Size([1, 3, 32, 32])
    """

    all_inputs: Tensor
    """Real inputs, (N, C, H, W). The probe uses the first one, BatchNorm re-estimation and the final comparison more of them."""
    evaluate: Callable[[nn.Module], float]
    """Returns the score on validation data; higher is better."""
    train: Callable[[nn.Module], nn.Module]
    """Returns the trained network; it may train in place. Its argument has re-estimated BatchNorm statistics."""
    evaluate_test: Callable[[nn.Module], float] | None = None
    """Returns the score on test data. Without it, the report shows the validation score, labelled as such."""
    description: str = "the user's own task"
    test_each_image: Callable[[nn.Module], ArrayLike] | None = None
    """Returns one value per test image, (N,), always in the same order. Booleans mean right or wrong. The mean is the test score,
    in place of `evaluate_test`, and the accuracy drop gets a confidence interval."""

    def example(self) -> Tensor:
        """See `Task`."""
        return self.all_inputs[:1]

    def inputs(self, count: int) -> Tensor:
        """See `Task`."""
        return self.all_inputs[:count]

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """See `Task`. All labels are 0, so importance by Taylor expansion (`taylor`) is not possible."""
        return ((batch, torch.zeros(len(batch), dtype=torch.long)) for batch in self.all_inputs.split(BATCH))

    @property
    def chance_level(self) -> float:
        """See `Task`. It is unknown, so 0."""
        return 0.0

    def distillation_images(self, count: int) -> None:
        """See `Task`. None, because only the user knows what the outputs mean."""

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """See `Task`."""
        recalibrate(module, self.all_inputs[: CALIBRATION_BATCHES * BATCH].split(BATCH))
        return self.evaluate(module)

    def validate(self, module: nn.Module) -> float:
        """See `Task`."""
        return self.evaluate(module)

    def test(self, module: nn.Module) -> Scores:
        """See `Task`."""
        if self.test_each_image is None:
            return Scores((self.evaluate_test or self.evaluate)(module))
        try:
            found = np.asarray(self.test_each_image(module))
            each = found.astype(np.float64) * (100.0 if found.dtype == bool else 1.0)
        except (TypeError, ValueError, RuntimeError) as problem:
            raise ModelError(f"OwnTask.test_each_image: expected one number per image, (N,) ({one_line(problem)})") from None
        return Scores(float(each.mean()) if each.size else math.nan, each)

    @property
    def test_images(self) -> None:
        """See `Task`. None, because it is unknown before the test."""

    @property
    def tests_each_image(self) -> bool:
        """See `Task`."""
        return self.test_each_image is not None

    def finetune(self, student: nn.Module, teacher: nn.Module, seed: int, checkpoint: Path, progress: Progress) -> Finetuned:
        """See `Task`. If the user's training makes the network worse, the untrained network is returned."""
        start = copy.deepcopy(student)
        before = self.score(start)
        trained = self.train(copy.deepcopy(start))
        after = self.evaluate(trained)
        if after >= before or not math.isfinite(before):
            return Finetuned(trained, accuracies=(after,), start=before, epoch=1)
        notice = (
            f"`train` did not improve the network: its validation score was {before:.2f} before and {after:.2f} after; the "
            "network before training is shipped"
        )
        return Finetuned(start, accuracies=(after,), start=before, epoch=0, notices=(notice,))

    def rehearsal(self) -> "OwnTask":
        """See `Task`. The user's own functions are not called, because they may take long."""

        def evaluate(module: nn.Module) -> float:
            with torch.no_grad():
                module.eval()(self.all_inputs[:REHEARSAL_IMAGES])
            return 0.0

        few = self.all_inputs[:BATCH]
        return replace(self, all_inputs=few, evaluate=evaluate, train=copy.deepcopy, evaluate_test=None, test_each_image=None)


def _pausing(images: Images, between: BetweenBatches) -> Iterable[tuple[Tensor, Tensor]]:
    for batch in images.batches(BATCH):
        between()
        yield batch
