"""Settings of fine-tuning, as plain data that does not need torch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import TrainingError

__all__ = ["RECOVERIES", "FinetuneSettings", "Recovery"]

Recovery = Literal["auto", "distil", "mimic", "blocks", "none"]
"""How a network is recovered from few pictures; see `pipeline.training.recover.methods`."""
RECOVERIES: tuple[Recovery, ...] = get_args(Recovery)
USUAL_EPOCHS = 20


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of fine-tuning. All searchers and baselines use the same ones, so that they can be compared.

    Raises TrainingError for an invalid value.

    FinetuneSettings(epochs=5, learning_rate=0.002)
    """

    epochs: int | None = None
    """None: 20 epochs, or with few pictures as many steps as pay within `minutes`. 0: no training; the network is shipped as it
    was scored."""
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
    recover: Recovery = "auto"
    """How the network is recovered from few pictures. "auto": by the number of pictures. "none": trained as with many."""
    minutes: float = 10.0
    """Time for training from few pictures, if `epochs` is None. A validation that is running is finished after it."""

    @property
    def whole_epochs(self) -> int:
        """Number of epochs of a training that counts epochs."""
        return USUAL_EPOCHS if self.epochs is None else self.epochs

    def __post_init__(self) -> None:
        """Check the values that a command line or a script can set."""
        if self.recover not in RECOVERIES:
            raise TrainingError(f"recover: got {self.recover}; choose one of {', '.join(RECOVERIES)}")
        if not 0 < self.minutes < math.inf:
            raise TrainingError(f"minutes of fine-tuning: got {self.minutes}; give a positive finite number, for example 10")
        if self.epochs is not None and self.epochs < 0:
            raise TrainingError(f"epochs: got {self.epochs}; give 0 for no training, or a positive number")
        if self.batch_size is not None and self.batch_size < 2:
            raise TrainingError(f"batch size: got {self.batch_size}; BatchNorm needs at least 2 images per batch")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate: got {self.learning_rate}; give a positive finite number, for example 0.01")
