"""Execution mode: how a network is run here. It is found by tests before the search, and copies of the network keep it."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["ExecutionMode", "execution_mode_of", "layout_of", "set_execution_mode", "train_mode", "train_norms"]

_ATTRIBUTE = "_compress_execution_mode"
_LIBRARIES = ("torch.", "torchvision.ops.")
"""Packages whose layers have their own training mode, such as BatchNorm, dropout and stochastic depth."""


@dataclass(frozen=True)
class ExecutionMode:
    """The execution mode that a network supports. The defaults are the fastest, and apply to a network that was not tested."""

    channels_last: bool = True
    """Whether images and weights use the channels-last memory format. `view` in a network's code may fail with it."""
    whole_training: bool = True
    """Whether training mode is set on the network's own modules. If False, it is set only on the layers of torch, and the
    network runs as in evaluation, without auxiliary outputs."""


def execution_mode_of(module: nn.Module) -> ExecutionMode:
    """Return the execution mode of `module`, or the default."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, ExecutionMode) else ExecutionMode()


def set_execution_mode(module: nn.Module, mode: ExecutionMode) -> None:
    """Store the execution mode `mode` in `module`. Copies of the module keep it."""
    setattr(module, _ATTRIBUTE, mode)


def layout_of(module: nn.Module) -> torch.memory_format:
    """Return the memory format for the weights and the images of `module`.

    module.to(memory_format=layout_of(module))
    """
    return torch.channels_last if execution_mode_of(module).channels_last else torch.contiguous_format


def train_mode(module: nn.Module) -> None:
    """Set training mode on `module`, or only on its torch layers, as its execution mode requires."""
    if execution_mode_of(module).whole_training:
        module.train()
        return
    module.eval()
    for layer in module.modules():
        if f"{type(layer).__module__}.".startswith(_LIBRARIES):
            layer.training = True


def train_norms(module: nn.Module) -> None:
    """Set training mode on the BatchNorm layers of `module`, and evaluation mode on everything else.

    Dropout and stochastic depth are off. They would add noise that the features of the dense network do not have.
    """
    module.eval()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.training = True
