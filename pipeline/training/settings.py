"""Settings of fine-tuning, as plain data that does not need torch."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipeline.errors import TrainingError

__all__ = [
    "DECAYS",
    "OPTIMIZERS",
    "RECOVERIES",
    "SCHEDULES",
    "Decay",
    "FinetuneSettings",
    "OptimizerName",
    "Recovery",
    "ScheduleShape",
]

Recovery = Literal["auto", "distil", "mimic", "blocks", "none"]
"""How a network is recovered from few pictures; see `pipeline.training.recover.methods`."""
RECOVERIES: tuple[Recovery, ...] = get_args(Recovery)
OptimizerName = Literal["sgd", "adamw"]
OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)
ScheduleShape = Literal["cosine", "linear", "constant"]
SCHEDULES: tuple[ScheduleShape, ...] = get_args(ScheduleShape)
Decay = Literal["auto", "all", "weights"]
DECAYS: tuple[Decay, ...] = get_args(Decay)
USUAL_EPOCHS = 20
NEW = ("optimizer", "decay", "schedule", "warmup_epochs", "ema")
"""Settings that older runs do not have."""


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

    optimizer: OptimizerName = "sgd"
    """"sgd" has Nesterov momentum. "adamw" takes a tenth of its learning rates."""
    decay: Decay = "auto"
    """Which parameters decay: "all", or only the "weights" of layers, and neither biases nor the parameters of normalisation.
    "auto": all with "sgd", and weights with "adamw"."""
    schedule: ScheduleShape = "cosine"
    """How the learning rate falls to zero after the warm-up."""
    warmup_epochs: float = 1.0
    """At most half of all epochs."""
    ema: float = 0.0
    """Share that the moving average of the weights keeps at each step, such as 0.999. The average is validated and shipped. 0: no
    average."""
    save_minutes: float = 10.0
    """Time after which the state of training is saved within an epoch. It is saved after each epoch in any case."""

    @property
    def decays_all(self) -> bool:
        """Whether all parameters decay."""
        return self.decay == "all" or (self.decay == "auto" and self.optimizer == "sgd")

    def facts(self) -> dict[str, Any]:
        """Return what a result depends on. Newer settings are left out where they are as in older versions."""
        usual, found = FinetuneSettings(), dict(vars(self))
        del found["save_minutes"]
        return {name: value for name, value in found.items() if name not in NEW or value != getattr(usual, name)}

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
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("decay", DECAYS)):
            if getattr(self, name) not in known:
                raise TrainingError(f"{name}: got {getattr(self, name)}; choose one of {', '.join(known)}")
        for name, most in (("ema", 1.0), ("warmup_epochs", math.inf), ("save_minutes", math.inf)):
            if not 0 <= getattr(self, name) < most:
                raise TrainingError(f"{name}: got {getattr(self, name)}; give a number from 0 to below {most:g}")
        if self.epochs is not None and self.epochs < 0:
            raise TrainingError(f"epochs: got {self.epochs}; give 0 for no training, or a positive number")
        if self.batch_size is not None and self.batch_size < 2:
            raise TrainingError(f"batch size: got {self.batch_size}; BatchNorm needs at least 2 images per batch")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning rate: got {self.learning_rate}; give a positive finite number, for example 0.01")
