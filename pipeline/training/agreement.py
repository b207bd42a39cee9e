"""Agreement: the task of a network whose outputs are no scores of classes, without labels. The dense network is the teacher."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from pipeline.core.batch import Inputs, Outputs, on_processor, outputs_of
from pipeline.core.compute_device import placed
from pipeline.core.paired_difference import Scores
from pipeline.core.progress import Progress, count_images, no_progress
from pipeline.data.images import Images, Splits
from pipeline.training.own_task import BetweenBatches
from pipeline.training.relative_error import sample_agreement, spreads_of
from pipeline.training.scoring import Score, calibration_images, recalibrate
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

__all__ = ["Agreement", "agreement_with"]

MOST_BYTES = 2**28
"""Answers of the dense network are kept up to this size; larger ones are computed again each time."""
MOST_VALIDATION_BYTES = 2**29
"""Training compares with all answers for the validation samples, so there are at most as many samples as fit."""
FEWEST_VALIDATION = 8


class DenseAnswers:
    """The answers of the dense network for the samples of one split."""

    def __init__(self, dense: nn.Module, images: Images) -> None:
        self.images = images
        self._dense = dense
        self._known: list[Outputs] | None = None

    def batches(self) -> Iterator[tuple[Inputs, Outputs]]:
        """Yield (inputs, answers) in order."""
        if self._known is not None:
            yield from zip((inputs for inputs, _ in self.images.batches()), self._known, strict=True)
            return
        kept: list[Outputs] = []
        with placed(self._dense) as device, torch.no_grad():
            for inputs, _ in self.images.batches():
                answers = on_processor(self._dense(inputs.to(device)))
                if sum(_bytes_of(each) for each in kept) < MOST_BYTES:
                    kept.append(answers)
                yield inputs, answers
        if sum(_bytes_of(each) for each in kept) < MOST_BYTES:
            self._known = kept

    @cached_property
    def spreads(self) -> tuple[float, ...]:
        """See `spreads_of`."""
        return spreads_of(answers for _, answers in self.batches())

    def agreements(
        self, module: nn.Module, between: BetweenBatches = lambda: None, progress: Progress = no_progress
    ) -> torch.Tensor:
        """Return the agreement of `module` for each sample in percent, (samples,). Sets evaluation mode."""
        spreads, found = self.spreads, []
        module.eval()
        with placed(module) as device, torch.no_grad():
            for inputs, answers in count_images(
                ((inputs, _Sized(answers)) for inputs, answers in self.batches()), len(self.images), "scoring", progress
            ):
                between()
                found.append(sample_agreement(on_processor(module(inputs.to(device))), answers.outputs, spreads))
        return torch.cat(found)


@dataclass(frozen=True)
class _Sized:
    outputs: Outputs

    def __len__(self) -> int:
        return len(outputs_of(self.outputs)[0])


@dataclass(frozen=True)
class Agreement(Classification):
    """Agreement of all outputs with the dense network's in percent; see `pipeline.training.relative_error`."""

    dense: nn.Module = field(default_factory=nn.Identity)
    """The dense network, in evaluation mode. It is not changed."""

    @property
    def score_name(self) -> str:
        """See `Task`."""
        return "agreement"

    @property
    def chance_level(self) -> float:
        """See `Task`. A network with random outputs is further from the dense network than the spread of its outputs."""
        return 0.0

    @cached_property
    def _scoring(self) -> DenseAnswers:
        return DenseAnswers(self.dense, self._scoring_images())

    @cached_property
    def _validation(self) -> DenseAnswers:
        return DenseAnswers(self.dense, self.splits.validation)

    @cached_property
    def _test(self) -> DenseAnswers:
        return DenseAnswers(self.dense, self.splits.test)

    def distillation_images(self, count: int) -> None:
        """See `Task`. None: a supernet learns scores of classes only."""

    def score(self, module: nn.Module, between: BetweenBatches = lambda: None) -> float:
        """See `Task`."""
        recalibrate(module, self.statistics_images())
        return float(self._scoring.agreements(module, between).mean())

    def score_against(self, module: nn.Module, to_beat: float | None, between: BetweenBatches = lambda: None) -> Score:
        """See `Task`. All samples are used, because the spread of agreements is unknown."""
        return Score(self.score(module, between))

    def validate(self, module: nn.Module, progress: Progress = no_progress) -> float:
        """See `Task`."""
        return float(self._validation.agreements(module, progress=progress).mean())

    def test(self, module: nn.Module, progress: Progress = no_progress) -> Scores:
        """See `Task`."""
        each = self._test.agreements(module, progress=progress).numpy()
        return Scores(float(each.mean()), each)

    def _statistics_images(self) -> Images:
        """All of them: agreement depends on every value of the outputs, not only on the largest one."""
        return calibration_images(self.splits.pictures, self.seed)

    def _scoring_images(self) -> Images:
        images = super()._scoring_images()
        return images.sample(_most_samples(self.dense, images, MOST_VALIDATION_BYTES), self.seed)


def agreement_with(dense: nn.Module, splits: Splits, settings: FinetuneSettings, seed: int) -> Agreement:
    """Return the task to agree with `dense`, a network with any outputs, on the samples of `splits`. Labels are not used.

    Training only imitates the dense network. With large outputs, there are fewer validation samples.
    """
    count = _most_samples(dense, splits.validation, MOST_VALIDATION_BYTES)
    splits = replace(splits, validation=splits.validation.sample(count, seed), labelled=False)
    labels = torch.zeros(len(splits.train.labels), dtype=torch.long)
    splits = splits.with_answers(labels, ("none",))
    return Agreement(splits, replace(settings, distillation=1.0), seed, copy.deepcopy(dense).eval())


def _most_samples(dense: nn.Module, images: Images, limit_bytes: int) -> int:
    """How many samples have outputs of at most `limit_bytes`."""
    with torch.no_grad():
        size = _bytes_of(dense(next(images.batches(1))[0]))
    return min(len(images), max(limit_bytes // max(size, 1), FEWEST_VALIDATION))


def _bytes_of(outputs: Outputs) -> int:
    return sum(each.numel() * each.element_size() for each in outputs_of(outputs))
