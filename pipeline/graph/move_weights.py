"""Move weights: change what training changes, so that a check notices a weight that does not reach the exported file."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["move_weights"]


def move_weights(module: nn.Module) -> None:
    """Change all trainable weights and all running statistics of `module` slightly, in place.

    Equal weights become different ones: a layer of zeros that became a layer of ones would sum up normalised values, whose sum is
    nothing but rounding.

    Other buffers stay. They may be sizes or scales on which shapes depend, and training does not change them either.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in _trained(module):
            tensor.mul_(1.01).add_(0.002 * torch.rand(tensor.shape, generator=generator).to(tensor))


def _trained(module: nn.Module) -> Iterator[Tensor]:
    yield from (parameter for parameter in module.parameters() if parameter.requires_grad and parameter.is_floating_point())
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            yield layer.running_mean
            yield layer.running_var
