"""Settings of fine-tuning, as plain data that does not need torch."""

import math
from dataclasses import dataclass

from pipeline.errors import TrainingError

__all__ = ["FinetuneSettings"]


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning. All searchers and baselines use the same ones, so that they can be compared.

    Raises TrainingError for an invalid value.

    FinetuneSettings(epochs=5, learning_rate=0.002)
    """

    epochs: int = 20
    """0: no training; the network is shipped as it was scored."""
    batch_size: int | None = None
    """None: 128, or less if there are fewer than 2,048 training images; see `fitting_batch_size`."""
    learning_rate: float | None = None
    """Peak learning rate, after one epoch of warm-up. None: short trials choose from `pipeline.training.learning_rates.RATES`."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    distillation: float = 0.7
    """Weight of the distillation loss from the dense network, 0 to 1. The loss on the labels gets the rest."""
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Check the values that a command line or a script can set."""
        if self.epochs < 0:
            raise TrainingError(f"epochs: got {self.epochs}; give 0 for no training, or a positive number")
        if self.batch_size is not None and self.batch_size < 2:
            raise TrainingError(f"batch size: got {self.batch_size}; BatchNorm needs at least 2 images per batch")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate: got {self.learning_rate}; give a positive finite number, for example 0.01")
