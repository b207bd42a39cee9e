"""Recover: a few steps of training before a narrowed network is judged.

Straight after the knife most networks answer at chance, the good ones as the bad: the score would rank noise. A few dozen
batches that follow the dense network's answers (Hinton et al., arXiv 1503.02531) show what a network can be trained to.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pipeline.finetune import distillation_loss, mixed_precision

__all__ = ["BATCH", "Recovery", "RecoverySettings", "start_recovery"]

BATCH = 64
WARMUP_STEPS = 5
TEMPERATURE = 4.0
MACS_PER_STEP = 6e10
"""Where a step of the dense network costs more, forward and backward, there are fewer of them."""
FEWEST_STEPS = 4


@dataclass(frozen=True)
class RecoverySettings:
    """How a candidate is trained before it is scored."""

    steps: int = 32
    """Batches of 64 images; 0 for no recovery."""
    learning_rate: float = 0.02
    """At the peak; it falls to zero in a straight line."""

    def affordable(self, macs: int) -> "RecoverySettings":
        """Fewer steps, or none, where the dense network, of `macs` a run, makes each of them costly."""
        steps = int(self.steps * min(1.0, MACS_PER_STEP / (3 * BATCH * macs)))
        return replace(self, steps=steps if steps >= FEWEST_STEPS else 0)

    def longer(self) -> "RecoverySettings":
        """For the few best: four times as long."""
        return RecoverySettings(4 * self.steps, 2.5 * self.learning_rate)


@dataclass(frozen=True)
class Recovery:
    """The same images in the same order for every candidate; no labels, no validation images."""

    images: Tensor
    """(N, C, H, W)"""
    answers: Tensor
    """(N, classes): what the dense network says to them."""
    settings: RecoverySettings

    def __call__(self, module: nn.Module, between: Callable[[], None] = lambda: None) -> None:
        """Train `module` in place and leave it in evaluation mode. Calls `between` batches."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            return
        optimizer = torch.optim.SGD(parameters, self.settings.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        torch.manual_seed(0)  # for dropout
        module.train()
        for step in range(self.settings.steps):
            between()
            share = min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / self.settings.steps)
            for group in optimizer.param_groups:
                group["lr"] = share * self.settings.learning_rate
            start = step * BATCH % len(self.images)
            chosen = slice(start, start + BATCH)
            images = self.images[chosen]
            with mixed_precision(images.device):
                logits = module(images)
            loss = distillation_loss(logits.float(), self.answers[chosen], TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        module.eval()


def start_recovery(dense: nn.Module, batches: Iterable[Tensor], settings: RecoverySettings) -> Recovery:
    """`batches`: training images, (N, C, H, W), to be gone through in their order, again and again where they are few."""
    images = torch.cat(list(batches))
    # whole batches: BatchNorm in training cannot learn from a last one of a single image
    images = images[: max(len(images) // BATCH, 1) * BATCH]
    dense.eval()
    with torch.no_grad():
        answers = torch.cat([dense(part) for part in images.split(BATCH)])
    return Recovery(images.contiguous(memory_format=torch.channels_last), answers, settings)
