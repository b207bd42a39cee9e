"""Rounding: how much of a difference between two runtimes comes from single precision."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference
from pipeline.graph.exporters import Examples, as_tuple

__all__ = ["agrees", "allowed_difference"]

FACTOR = 4.0
"""Two runtimes add in different orders, so their outputs may differ by a few times the rounding of one of them."""
LARGEST = 1e-2
"""No difference above this share of the largest output counts as rounding."""


def agrees(difference: float, module: nn.Module, inputs: Examples) -> bool:
    """Whether outputs that differ by this share of the largest output are those of `module`. See `allowed_difference`."""
    return difference <= TOLERANCE or difference <= allowed_difference(module, inputs)


def allowed_difference(module: nn.Module, inputs: Examples) -> float:
    """The largest share of the largest output by which a graph of `module` may differ from it.

    It is `TOLERANCE`, or more where the module's own outputs in single and in double precision differ by more than that, as in
    deep networks whose weights are random. A module that does not run in double precision gets `TOLERANCE`.
    """
    tensors = as_tuple(inputs)
    try:
        with torch.no_grad():
            exact = copy.deepcopy(module).double()(
                *(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors)
            )
            single = module(*tensors)
    except Exception:  # the user's own code may raise anything
        return TOLERANCE
    rounding = largest_difference(_arrays(exact), _arrays(single))
    return float(np.clip(FACTOR * rounding, TOLERANCE, LARGEST)) if np.isfinite(rounding) else TOLERANCE


def _arrays(outputs: object) -> list[NDArray[Any]]:
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return [(tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors]
