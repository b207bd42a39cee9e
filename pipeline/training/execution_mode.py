"""Manner: how a network is run here. It is found by trying, before the search, and every copy of the network keeps it."""

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Manner", "layout_of", "manner_of", "set_manner", "train_mode"]

_ATTRIBUTE = "_compress_manner"
_LIBRARIES = ("torch.", "torchvision.ops.")
"""Packages whose layers have a training mode of their own: BatchNorm, dropout, stochastic depth."""


@dataclass(frozen=True)
class Manner:
    """What a network was found to bear. The defaults are the fastest way, and hold for a network that was not tried."""

    channels_last: bool = True
    """Images and weights lie in memory with their channels last. `view` in a network's code may not accept that."""
    whole_training: bool = True
    """Training mode reaches the network's own code. Where False, it reaches only the layers of torch, and the network runs as it
    does in evaluation: without auxiliary outputs."""


def manner_of(module: nn.Module) -> Manner:
    """The manner of `module`, or the default."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, Manner) else Manner()


def set_manner(module: nn.Module, manner: Manner) -> None:
    """Keep `manner` with `module`; copies of it have it too."""
    setattr(module, _ATTRIBUTE, manner)


def layout_of(module: nn.Module) -> torch.memory_format:
    """The memory format for the weights of `module` and for the images that it is given.

    module.to(memory_format=layout_of(module))
    """
    return torch.channels_last if manner_of(module).channels_last else torch.contiguous_format


def train_mode(module: nn.Module) -> None:
    """Put `module` into training mode, as far as its manner says."""
    if manner_of(module).whole_training:
        module.train()
        return
    module.eval()
    for layer in module.modules():
        if f"{type(layer).__module__}.".startswith(_LIBRARIES):
            layer.training = True
