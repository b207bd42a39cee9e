"""Task: how a network is scored, trained and finally tested. Classification is one; a user's own functions are another."""

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
from pipeline.training.finetune import Finetuned, Progress, finetune
from pipeline.training.learning_rates import fitting_batch_size
from pipeline.training.scoring import BATCH, CALIBRATION_BATCHES, accuracy, calibration_images, hits, recalibrate
from pipeline.training.settings import FinetuneSettings

__all__ = ["Classification", "OwnTask", "Task"]

SCORING_IMAGES = 2000
"""Validation images that score a candidate; all of them choose the epoch in fine-tuning."""
REHEARSAL_IMAGES = 16
REHEARSAL_RATE = 1e-3
"""Small enough for any network: a rehearsal looks at whether training runs, not at what it learns."""

BetweenBatches = Callable[[], None]


class Task(Protocol):
    """What the walk needs to know of the user's problem."""

    @property
    def description(self) -> str:
        """What the data are; part of a run's identity."""

    def example(self) -> Tensor:
        """One real input as a batch, (1, C, H, W)."""

    def inputs(self, count: int) -> Tensor:
        """`count` real inputs, or as many as there are, none of them test data."""

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """A few batches of (inputs, labels) from the training data."""

    @property
    def chance_level(self) -> float:
        """The score of a network that knows nothing."""

    def distillation_images(self, count: int) -> Images | None:
        """Training images, `count` at most, on which a network may follow another's answers; None where the task has none."""

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """How well a narrowed network does on validation data, higher is better; its BatchNorm is estimated anew first.

        `between` is called between batches.
        """

    def validate(self, module: nn.Module) -> float:
        """How well a finished network does on all validation data."""

    def test(self, module: nn.Module) -> Scores:
        """How well a finished network does on test data; called at the very end, once for each network reported."""

    @property
    def test_images(self) -> int | None:
        """How many images `test` answers for; None where that is not known."""

    @property
    def tests_each_image(self) -> bool:
        """Whether `test` gives one value per image, without which a drop has no interval."""

    def finetune(self, student: nn.Module, teacher: nn.Module, seed: int, checkpoint: Path, progress: Progress) -> Finetuned:
        """A trained copy of `student`, which is never worse on validation data than `student` as `score` leaves it."""

    def rehearsal(self) -> "Task":
        """The same task in small: it scores and trains in batches of the sizes to come, in seconds, and has no test data."""


@dataclass(frozen=True)
class Classification:
    """Top-1 accuracy in percent on labelled images."""

    splits: Splits
    settings: FinetuneSettings
    seed: int

    @property
    def description(self) -> str:
        """The images, in words and numbers."""
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
        """See `Task`: that of always answering with the commonest class."""
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
        return finetune(student, teacher, splits.train, splits.validation, self.settings, seed, checkpoint, progress)

    def rehearsal(self) -> "Classification":
        """See `Task`: one full batch and one of the size that an epoch ends with; a few validation images, also as test data."""
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
    """Any other task than classification, defined by your own functions.

    >>> import torch
    >>> from pipeline import OwnTask
    >>> task = OwnTask(torch.rand(8, 3, 32, 32), evaluate=lambda module: 90.0, train=lambda module: module)
    >>> task.example().shape
    torch.Size([1, 3, 32, 32])
    """

    all_inputs: Tensor
    """Real inputs, (N, C, H, W): one for the probe, the rest for re-estimating BatchNorm and for the final comparison."""
    evaluate: Callable[[nn.Module], float]
    """Score on validation data, higher is better."""
    train: Callable[[nn.Module], nn.Module]
    """Returns the trained network; may train in place. It begins with BatchNorm statistics that were estimated anew."""
    evaluate_test: Callable[[nn.Module], float] | None = None
    """Score on test data; without it the validation score stands in the report, and is called so."""
    description: str = "the user's own task"
    test_each_image: Callable[[nn.Module], ArrayLike] | None = None
    """One value per test image, (N,), always in the same order; right and wrong may be booleans. Their mean is the test score, in
    place of `evaluate_test`, and the accuracy drop gets a confidence interval."""

    def example(self) -> Tensor:
        """See `Task`."""
        return self.all_inputs[:1]

    def inputs(self, count: int) -> Tensor:
        """See `Task`."""
        return self.all_inputs[:count]

    def calibration(self) -> Iterable[tuple[Tensor, Tensor]]:
        """Inputs without labels: importance by Taylor expansion needs a task that has them."""
        return ((batch, torch.zeros(len(batch), dtype=torch.long)) for batch in self.all_inputs.split(BATCH))

    @property
    def chance_level(self) -> float:
        """See `Task`: unknown."""
        return 0.0

    def distillation_images(self, count: int) -> None:
        """See `Task`: what the answers mean, and how to train for it, only the user knows."""

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
        """See `Task`: known when they have been tested."""

    @property
    def tests_each_image(self) -> bool:
        """See `Task`."""
        return self.test_each_image is not None

    def finetune(self, student: nn.Module, teacher: nn.Module, seed: int, checkpoint: Path, progress: Progress) -> Finetuned:
        """See `Task`; the user's loop keeps its own checkpoints. A network that it makes worse is not taken."""
        start = copy.deepcopy(student)
        before = self.score(start)
        trained = self.train(copy.deepcopy(start))
        after = self.evaluate(trained)
        if after >= before or not math.isfinite(before):
            return Finetuned(trained, accuracies=(after,), start=before, epoch=1)
        notice = (
            f"`train` did not help: the network scored {before:.2f} before it and {after:.2f} after it, on validation data; "
            "what is shipped is the network as it was before"
        )
        return Finetuned(start, accuracies=(after,), start=before, epoch=0, notices=(notice,))

    def rehearsal(self) -> "OwnTask":
        """See `Task`: the user's own functions may take long, and are not called."""

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
