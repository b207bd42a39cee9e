"""Rounding: how much of a difference between two runtimes comes from single precision."""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference

__all__ = ["agrees", "allowed_difference"]

FACTOR = 4.0
"""Two runtimes add in different orders, so their outputs may differ by a few times the rounding of one of them."""
LARGEST = 1e-2
"""No difference above this share of the largest output counts as rounding."""


def agrees(difference: float, module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether outputs that differ by this share of the largest output are those of `module`. See `allowed_difference`."""
    return difference <= TOLERANCE or difference <= allowed_difference(module, inputs)


def allowed_difference(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The largest share of the largest output by which a graph of `module` may differ from it.

    It is `TOLERANCE`, or more where the module's own outputs in single and in double precision differ by more than that, as in
    deep networks whose weights are random. A module that does not run in double precision gets `TOLERANCE`.
    """
    try:
        with torch.no_grad():
            exact = copy.deepcopy(module).double()(
                *(tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs)
            )
            single = module(*inputs)
    except Exception:  # the user's own code may raise anything
        return TOLERANCE
    pairs = zip(_tensors(exact), _tensors(single), strict=True)
    rounding = max((largest_difference(one.float().numpy(), other.float().numpy()) for one, other in pairs), default=0.0)
    return float(np.clip(FACTOR * rounding, TOLERANCE, LARGEST)) if np.isfinite(rounding) else TOLERANCE


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
