"""Options file: the options of training that are rarely needed, as a YAML file."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import TrainingError
from pipeline.system.strict_yaml import load_yaml
from pipeline.training.settings import Decay, FinetuneSettings, OptimizerName, ScheduleShape

__all__ = ["TrainingOptions", "read_training_options"]

USUAL = FinetuneSettings()


class TrainingOptions(BaseModel):
    """The content of the file of `--training`. Options that have a flag of their own are not part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    optimizer: OptimizerName = Field(USUAL.optimizer, examples=["adamw"])
    momentum: float = Field(USUAL.momentum, ge=0, lt=1, examples=[0.9])
    weight_decay: float = Field(USUAL.weight_decay, ge=0, examples=[0.05])
    decay: Decay = Field(USUAL.decay, examples=["weights"])
    schedule: ScheduleShape = Field(USUAL.schedule, examples=["cosine"])
    warmup_epochs: float = Field(USUAL.warmup_epochs, ge=0, examples=[1.0])
    label_smoothing: float = Field(USUAL.label_smoothing, ge=0, lt=1, examples=[0.1])
    distillation: float = Field(USUAL.distillation, ge=0, le=1, examples=[0.7])
    temperature: float = Field(USUAL.temperature, gt=0, examples=[4.0])
    ema: float = Field(USUAL.ema, ge=0, lt=1, examples=[0.999])
    save_minutes: float = Field(USUAL.save_minutes, ge=0, examples=[10.0])
    loader_workers: int | None = Field(None, ge=0, le=1024, examples=[4])

    def settings(self) -> dict[str, Any]:
        """Return the arguments of FinetuneSettings."""
        return self.model_dump(exclude={"loader_workers"})


def read_training_options(path: Path | None) -> TrainingOptions:
    """Read the file at `path`. None: the defaults. Raises TrainingError with file, line and the most similar key."""
    return TrainingOptions() if path is None else load_yaml(path, TrainingOptions, TrainingError)
