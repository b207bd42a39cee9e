"""Losses: what training minimises, from the labels and from the teacher's outputs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.batch import Outputs, outputs_of
from pipeline.training.relative_error import imitation_loss, is_classifier
from pipeline.training.settings import FinetuneSettings

__all__ = ["as_logits", "distillation_loss", "training_loss"]

PROBABILITY_ROUNDING = 1e-2
"""How far the sum of a row of probabilities may be from 1, also in bfloat16."""
LEAST_PROBABILITY = 1e-7
"""Smaller probabilities are taken as this one, because zero has no logarithm."""


def training_loss(logits: Outputs, target: Outputs | None, labels: Tensor, settings: FinetuneSettings) -> Tensor:
    """Return (1 - a) CE(y, smoothed labels) + a T^2 KL(target / T || logits / T)   (Hinton et al., arXiv 1503.02531).

    `logits` and the teacher's `target` are (N, classes). `labels` are (N,), or (N, classes) for mixed images: the share of each
    class. The result is the batch mean; without a target, CE alone.
    Probabilities work too; see `as_logits`. For other outputs, labels are not used, and it is the `imitation_loss`.
    """
    if target is not None and not is_classifier(target):
        return imitation_loss(logits, target)
    logits = outputs_of(logits)[0]
    if labels.dim() == 2:
        labels = F.pad(labels, (0, logits.shape[1] - labels.shape[1]))  # a network may have outputs for classes without images
    hard = F.cross_entropy(as_logits(logits), labels, label_smoothing=settings.label_smoothing)
    if target is None:
        return hard
    soft = distillation_loss(logits, target, settings.temperature)
    return (1 - settings.distillation) * hard + settings.distillation * soft


def distillation_loss(logits: Outputs, target: Outputs, temperature: float) -> Tensor:
    """Return T^2 KL(target / T || logits / T), both (N, classes), mean over the batch (Hinton et al., arXiv 1503.02531).

    Probabilities work too; see `as_logits`. For other outputs, it is the `imitation_loss`.
    """
    if not isinstance(target, Tensor) or not isinstance(logits, Tensor) or not is_classifier(target):
        return imitation_loss(logits, target)
    soft = F.log_softmax(as_logits(logits) / temperature, 1), F.log_softmax(as_logits(target) / temperature, 1)
    return temperature**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)


def as_logits(outputs: Tensor) -> Tensor:
    """Return the logarithms of `outputs`, (N, classes), if every row is a distribution; otherwise `outputs`.

    A network may end with softmax, as many ONNX files do. The logarithms of its outputs are the same as its logits, except for a
    number that is the same for all classes.
    """
    with torch.no_grad():
        is_distribution = outputs.dim() == 2 and outputs.shape[1] > 1 and bool((outputs >= 0).all())
        is_distribution = is_distribution and bool(((outputs.sum(1) - 1).abs() < PROBABILITY_ROUNDING).all())
    return outputs.clamp_min(LEAST_PROBABILITY).log() if is_distribution else outputs
