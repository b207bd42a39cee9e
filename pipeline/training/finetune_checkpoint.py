"""Checkpoint: save the state of fine-tuning in one file, which is replaced atomically. It holds the network, the average of its
weights, the state of the optimizer, the best network so far, and the state of torch's generators."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import TypeAdapter
from torch import Tensor

from pipeline.errors import one_line
from pipeline.system.files import write_atomically
from pipeline.training.epochs import Learner

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["TrainingState", "resume", "save_state"]


@dataclass
class TrainingState:
    """State of training after an epoch, or within one. Epoch 0 is the network as it was scored, and the best one at the start."""

    learning_rate: float
    """Peak learning rate. It is lowered when training diverges."""
    start_score: float
    """Score of epoch 0. All scores here are accuracies in percent on validation images."""
    reference_loss: float
    """Loss of a network that has learned nothing. Training has diverged if its loss is far above."""
    best_score: float
    augmented_statistics: bool
    """See `TrainingSetup.augmented`."""
    best_loss: float = math.inf
    """Validation loss of the best epoch. Infinite in a checkpoint of a version that did not compare losses."""
    best_epoch: int = 0
    epoch: int = 0
    """Last finished epoch."""
    history: list[float] = field(default_factory=list)
    """Scores after epochs 1, 2, ..."""
    retreats: int = 0
    """Number of times that training diverged and returned to its best state."""
    notices: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Losses of the finished steps of the epoch after the last finished one."""


State = TypeVar("State")

KEYS = {"momentum_buffer": "momentum"}
"""Name of a tensor in the state of an optimizer -> its name in the file, if it is another."""
OPTIMIZER_KEYS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


def save_state(checkpoint: Path | None, learner: Learner, state: "DataclassInstance", identity: str) -> None:
    """Write the state of training. `identity` identifies the training. `state` is a dataclass of plain values.

    Raises StorageError.
    """
    if checkpoint is None:
        return
    # clones, because safetensors refuses shared memory, and a layer with two names would be written twice
    whole = torch.contiguous_format
    now = learner.module.state_dict()
    tensors = {f"now/{name}": tensor.detach().cpu().clone(memory_format=whole) for name, tensor in now.items()}
    tensors |= {f"best/{name}": tensor.contiguous() for name, tensor in learner.best.items()}
    if learner.average is not None:
        averaged = learner.average.module.state_dict()
        tensors |= {f"average/{name}": tensor.detach().cpu().clone(memory_format=whole) for name, tensor in averaged.items()}
        tensors["averaged"] = learner.average.n_averaged.cpu()
    for name, parameter in learner.module.named_parameters():
        for key, value in learner.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{KEYS.get(key, key)}/{name}"] = value.detach().cpu().clone(memory_format=whole)
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_initialized():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    notes = {"identity": identity, "state": json.dumps(asdict(state))}
    write_atomically(checkpoint, safetensors.torch.save(tensors, metadata=notes))


def resume(checkpoint: Path | None, learner: Learner, identity: str, kind: type[State]) -> tuple[State | None, str]:
    """Restore `learner` from `checkpoint`. Returns the state of training, a `kind`, or None, and a notice for the user, or "".

    A file that is damaged, or comes from another training or version, is not used, and the notice says so.
    """
    if checkpoint is None or not checkpoint.is_file():
        return None, ""
    try:
        with safetensors.safe_open(checkpoint, "pt") as file:
            notes = file.metadata() or {}
            if notes.get("identity") != identity:
                return None, (
                    f"{checkpoint}: belongs to another training, or was written by another version of this program; "
                    "fine-tuning starts again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = TypeAdapter(kind).validate_json(notes["state"])
        now, best = (_part(tensors, part, learner.module.state_dict()) for part in ("now", "best"))
        average = _part(tensors, "average", now) if learner.average is not None else None
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as problem:
        return None, f"{checkpoint}: damaged ({one_line(problem)}); fine-tuning starts again"
    learner.module.load_state_dict(now)
    learner.best.update(best)
    if learner.average is not None and average is not None:
        learner.average.module.load_state_dict(average)
        learner.average.n_averaged.copy_(tensors["averaged"])
    for name, parameter in learner.module.named_parameters():
        for key in OPTIMIZER_KEYS:
            value = tensors.get(f"{KEYS.get(key, key)}/{name}")
            if value is not None:
                learner.optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
    if "random/cpu" in tensors:  # an older version did not save it
        torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    return state, ""


def _part(tensors: dict[str, Tensor], part: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict stored under `part`. Raises ValueError if names or shapes differ from those of `like`."""
    found = {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in like.items()}:
        raise ValueError(f"its tensors '{part}' do not match the network")
    return found
