"""OwnTask: a task that is defined by the user's own functions."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from pipeline.core.batch import Batch, Inputs, tensors_of
from pipeline.core.paired_difference import Scores
from pipeline.core.progress import Progress, count_images, no_progress
from pipeline.data.images import evaluation_size
from pipeline.errors import CompressError, DataError, ModelError, NetworkError, one_line
from pipeline.system.user_files import own_line
from pipeline.training.finetune import Finetuned
from pipeline.training.scoring import BATCH, CALIBRATION_BATCHES, Score, recalibrate
from pipeline.training.teacher import Teacher

__all__ = ["REHEARSAL_IMAGES", "USUAL_DESCRIPTION", "BetweenBatches", "OwnTask", "with_progress"]

REHEARSAL_IMAGES = 16
USUAL_DESCRIPTION = "the user's own task"

BetweenBatches = Callable[[], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class OwnTask:
    """A task other than classification, defined by your own functions.

    >>> import torch
    >>> from pipeline import OwnTask
    >>> task = OwnTask(torch.rand(8, 3, 32, 32), evaluate=lambda module: 90.0, train=lambda module: module)
    >>> task.example().shape
    torch.Size([1, 3, 32, 32])
    """

    all_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]
    """Real inputs, (N, C, H, W). The probe uses the first one, BatchNorm re-estimation and the final comparison more of them.
    Several inputs are a tuple, in the order of the network's arguments, or a dict of its arguments. The first axis of each is
    the sample."""
    evaluate: Callable[[nn.Module], float]
    """Returns the score on validation data; higher is better."""
    train: Callable[..., nn.Module]
    """Returns the trained network; it may train in place. Its argument has re-estimated BatchNorm statistics. If it also has an
    argument `progress`, it gets a function for that: `progress(done, total)` says that `done` of `total` steps are finished, so
    that the time left is shown."""
    evaluate_test: Callable[[nn.Module], float] | None = None
    """Returns the score on test data. Without it, the report shows the validation score, labelled as such."""
    description: str = USUAL_DESCRIPTION
    test_each_image: Callable[[nn.Module], ArrayLike] | None = None
    """Returns one value per test image, (N,), always in the same order. Booleans mean right or wrong. The mean is the test score,
    in place of `evaluate_test`, and the accuracy drop gets a confidence interval."""
    score_name: str = "accuracy"
    """What the score is called in the results, such as mIoU or mAP."""

    def __post_init__(self) -> None:
        """Raises DataError if the inputs are not tensors with the same number of samples."""
        given = self.all_inputs
        named = given.items() if isinstance(given, Mapping) else enumerate([given] if isinstance(given, Tensor) else given)
        counts: dict[str, int] = {}
        for name, tensor in named:
            if not isinstance(tensor, Tensor) or not tensor.dim() or not len(tensor):
                got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                raise DataError(f"OwnTask: input {name!r}: got {got}; give a tensor with at least one sample on its first axis")
            counts[repr(name)] = len(tensor)
        if len(set(counts.values())) != 1:
            found = ", ".join(f"{count} of {name}" for name, count in counts.items()) or "none"
            raise DataError(f"OwnTask: all inputs need the same number of samples (got {found})")

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names by which the network takes its inputs. Empty: it takes them by position."""
        return tuple(self.all_inputs) if isinstance(self.all_inputs, Mapping) else ()

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self._samples)

    @property
    def _samples(self) -> Inputs:
        given = self.all_inputs
        if isinstance(given, Tensor):
            return given
        return Batch(tuple(given.values() if isinstance(given, Mapping) else given))

    def example(self) -> Inputs:
        """See `Task`."""
        return self.inputs(1)

    def inputs(self, count: int) -> Inputs:
        """See `Task`."""
        return self._samples[:count]

    def calibration(self, progress: Progress = no_progress, *, labelled: bool = False) -> Iterable[tuple[Inputs, Tensor]]:
        """See `Task`. All labels are 0, so importance by Taylor expansion (`taylor`) is not possible."""
        count = len(self._samples)
        batches = ((batch, torch.zeros(len(batch), dtype=torch.long)) for batch in self._batches(count))
        return count_images(batches, count, "statistics of the dense network", progress)

    def statistics_images(self) -> Iterable[Inputs]:
        """See `Task`."""
        return self._batches(CALIBRATION_BATCHES * BATCH)

    @property
    def few_pictures(self) -> bool:
        """See `Task`. False, because the user's own training decides what it can do with few."""
        return False

    @property
    def chance_level(self) -> float:
        """See `Task`. It is unknown, so 0."""
        return 0.0

    def distillation_images(self, count: int) -> None:
        """See `Task`. None, because only the user knows what the outputs mean."""

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """See `Task`."""
        recalibrate(module, self.statistics_images())
        return _score("evaluate", self.evaluate, module)

    def score_against(self, module: nn.Module, to_beat: float | None, between: BetweenBatches = lambda: None) -> Score:
        """See `Task`. The user's own function always scores on all its images."""
        return Score(self.score(module, between))

    def validate(self, module: nn.Module, progress: Progress = no_progress) -> float:
        """See `Task`. The user's own function does not report its progress."""
        return _score("evaluate", self.evaluate, module)

    def test(self, module: nn.Module, progress: Progress = no_progress) -> Scores:
        """See `Task`. The user's own function does not report its progress."""
        if self.test_each_image is None:
            name = "evaluate_test" if self.evaluate_test else "evaluate"
            return Scores(_score(name, self.evaluate_test or self.evaluate, module))
        values = _called("test_each_image", self.test_each_image, module)
        try:
            found = np.asarray(values)
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

    @property
    def training_plan(self) -> str:
        """See `Task`."""
        return "your own training"

    def finetune(
        self, student: nn.Module, teacher: nn.Module | Teacher, seed: int, checkpoint: Path, progress: Progress
    ) -> Finetuned:
        """See `Task`. If the user's training makes the network worse, the untrained network is returned."""
        start = copy.deepcopy(student)
        before = self.score(start)
        trained = _called("train", with_progress(self.train, progress), copy.deepcopy(start))
        if not isinstance(trained, nn.Module):
            raise ModelError(f"OwnTask.train: expected the trained network, got {type(trained).__name__}; return the module")
        after = _score("evaluate", self.evaluate, trained)
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
                module.eval()(self.inputs(REHEARSAL_IMAGES))
            return 0.0

        few = tensors_of(self.inputs(BATCH))
        kept = dict(zip(self.input_names, few, strict=True)) if self.input_names else few
        return replace(
            self,
            all_inputs=few[0] if isinstance(self.all_inputs, Tensor) else kept,
            evaluate=evaluate,
            train=copy.deepcopy,
            evaluate_test=None,
            test_each_image=None,
        )

    def _batches(self, most: int) -> Iterable[Inputs]:
        """The first inputs, at most `most`, in batches whose memory is bounded."""
        batches: Iterable[Inputs] = self.inputs(most).split(evaluation_size(self.inputs(1).numel()))
        return batches


def with_progress(train: Callable[..., nn.Module], progress: Progress) -> Callable[[nn.Module], nn.Module]:
    """`train` as a function of the network alone. If it has an argument `progress`, its steps are reported there."""
    try:
        reports = "progress" in inspect.signature(train).parameters
    except (TypeError, ValueError):  # a function written in C has no signature
        reports = False
    if not reports:
        progress(0, 0, "your own training; it reports no steps, so the time left is unknown")
        return train

    def step(done: int, total: int) -> None:
        progress(int(done), int(total), f"your own training, {int(done):,} of {int(total):,}")

    progress(0, 0, "your own training")
    return functools.partial(train, progress=step)


def _called(name: str, function: Callable[[nn.Module], Answer], module: nn.Module) -> Answer:
    """The answer of the user's `function`. Raises NetworkError, with the line of the user's code, if it fails."""
    try:
        return function(module)
    except (CompressError, MemoryError):
        raise
    except Exception as problem:
        line = own_line(problem)
        forms = "with fewer channels" if name == "train" else "with fewer channels, and on the ONNX file as a module"
        raise NetworkError(
            f"OwnTask.{name} failed: {type(problem).__name__}: {one_line(problem)}{f' ({line})' if line else ''}; it must work "
            f"on networks {forms}"
        ) from problem


def _score(name: str, function: Callable[[nn.Module], float], module: nn.Module) -> float:
    """The score from the user's `function`. Raises ModelError if it is no number."""
    value = _called(name, function, module)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise ModelError(f"OwnTask.{name}: expected a number, got {type(value).__name__} ({one_line(problem)})") from None
