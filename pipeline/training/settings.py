"""Settings of fine-tuning: plain data, which can be made without importing torch."""

import math
from dataclasses import dataclass

from pipeline.errors import TrainingError

__all__ = ["FinetuneSettings"]


@dataclass(frozen=True)
class FinetuneSettings:
    """One schedule for every searcher and every baseline, so that they can be compared.

    Raises TrainingError where a value cannot be trained with.

    FinetuneSettings(epochs=5, learning_rate=0.002)
    """

    epochs: int = 20
    """0: no training; the network is shipped as it was scored."""
    batch_size: int | None = None
    """None: 128, or fewer where there are less than 2,048 training images; see `fitting_batch_size`."""
    learning_rate: float | None = None
    """At the peak, after one epoch of warm-up. None: one of `pipeline.training.learning_rates.RATES`, by trial."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    distillation: float = 0.7
    """Share of the loss that follows the dense network's answers; the rest follows the labels."""
    temperature: float = 4.0

    def __post_init__(self) -> None:
        """Check what the command line and a script can set."""
        if self.epochs < 0:
            raise TrainingError(f"epochs: got {self.epochs}; give 0 for no training, or a positive number")
        if self.batch_size is not None and self.batch_size < 2:
            raise TrainingError(f"batch size: got {self.batch_size}; BatchNorm cannot learn from less than 2 images at a time")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate: got {self.learning_rate}; give a positive finite number, for example 0.01")
