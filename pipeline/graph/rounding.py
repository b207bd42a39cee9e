"""Rounding: how much of a difference between two runtimes comes from single precision."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.core.feeds import Arrays, Feeds
from pipeline.core.onnx_outputs import TOLERANCE, largest_difference
from pipeline.graph.double_precision import double_outputs
from pipeline.graph.exporters import Examples, as_tuple

__all__ = ["MOST_LOST", "agrees", "allowed_difference", "exact_outputs", "loses_only_digits", "lost_to_rounding"]

FACTOR = 10.0
"""Two runtimes add in different orders, so their outputs may differ by several times the rounding of one of them."""
LAST_DIGIT = 2.0**-23
"""Distance between neighbouring numbers in single precision, as a share of them."""
CHANGED = 3
"""Number of copies with changed weights, because one alone may happen to change little."""
LARGEST = 1e-2
"""No difference above this share of the largest output counts as torch's rounding."""
MOST_LOST = 0.1
"""ONNX Runtime may lose this share of the largest output to rounding, if the file is right in double precision."""


def agrees(expected: Feeds, found: Feeds, module: nn.Module, inputs: Examples, data: bytes) -> bool:
    """Whether `found`, the outputs of the ONNX file `data`, are those of `module` for `inputs`, which are `expected`.

    Where they differ by more than `TOLERANCE`, they may differ by what `module` loses to rounding; see `allowed_difference`. In a
    network that loses more digits than `LARGEST` allows, two right answers can be further apart than that. So it is enough that
    `found` is that near to the outputs in double precision.

    ONNX Runtime may lose more digits than torch, at most `MOST_LOST`. Then the file must be right in double precision.
    """
    difference = largest_difference(expected, found)
    if difference <= TOLERANCE:
        return True
    exact = exact_outputs(module, inputs)
    if not exact:
        return False
    allowed, nearest = _allowed(exact, module, inputs), min(difference, largest_difference(exact, found))
    if nearest <= allowed:
        return True
    return nearest <= MOST_LOST and loses_only_digits(exact, data, [[each.numpy() for each in as_tuple(inputs)]], allowed)


def allowed_difference(module: nn.Module, inputs: Examples) -> float:
    """The largest share of the largest output by which a graph of `module` may differ from it.

    It is `TOLERANCE`, or more where the module's own outputs differ by more than that in double precision, or if the last digit
    of each weight changes. Deep networks whose weights are random are such modules, and networks that end with softmax of large
    numbers. A module that does not run in double precision gets `TOLERANCE`.
    """
    exact = exact_outputs(module, inputs)
    return _allowed(exact, module, inputs) if exact else TOLERANCE


def loses_only_digits(exact: Arrays, data: bytes, samples: Sequence[Feeds], allowed: float) -> bool:
    """Whether the ONNX file `data` has the outputs `exact`, (N, ...), for the N `samples`, if it is run in double precision.

    ONNX Runtime adds in another order than torch. Where large numbers cancel, as in a variance computed as E[x^2] - E[x]^2, it
    may lose many more digits than torch, and on a few inputs only. In double precision only a wrong file is far off.

    `exact`: the outputs of the torch network in double precision. `allowed`: a share of the largest output.
    """
    found = double_outputs(data, samples)
    if found is None or [each.size for each in found] != [each.size for each in exact]:
        return False
    return largest_difference(exact, [mine.reshape(its.shape) for mine, its in zip(found, exact, strict=True)]) <= allowed


def lost_to_rounding(module: nn.Module, inputs: Examples) -> float:
    """The share of the largest output by which rounding alone changes the outputs of `module`; 0 if that cannot be found out."""
    exact = exact_outputs(module, inputs)
    return _lost(exact, module, inputs) if exact else 0.0


def _allowed(exact: Feeds, module: nn.Module, inputs: Examples) -> float:
    rounding = _lost(exact, module, inputs)
    return float(np.clip(FACTOR * rounding, TOLERANCE, LARGEST)) if np.isfinite(rounding) else TOLERANCE


def _lost(exact: Feeds, module: nn.Module, inputs: Examples) -> float:
    tensors = as_tuple(inputs)
    with torch.no_grad():
        single = _arrays(module(*tensors))
        rounding = largest_difference(exact, single)
        for seed in range(CHANGED):
            changed = _arrays(_with_changed_weights(module, seed)(*tensors))
            rounding = max(rounding, largest_difference(single, changed))
    return rounding


def exact_outputs(module: nn.Module, inputs: Examples) -> Arrays | None:
    """The outputs of `module` in double precision, rounded to single; None if it does not run in double precision."""
    doubled = (tensor.double() if tensor.is_floating_point() else tensor for tensor in as_tuple(inputs))
    try:
        with torch.no_grad():
            return _arrays(copy.deepcopy(module).double()(*doubled))
    except Exception:  # the user's own code may raise anything
        return None


def _with_changed_weights(module: nn.Module, seed: int) -> nn.Module:
    """A copy in which the last digit of each weight is one more or one less than in `module`."""
    generator = torch.Generator().manual_seed(seed)
    changed = copy.deepcopy(module)
    for weight in changed.parameters():
        if weight.is_floating_point():
            signs = 2 * torch.randint(0, 2, weight.shape, generator=generator, dtype=weight.dtype) - 1
            weight.mul_(1 + LAST_DIGIT * signs)
    return changed


def _arrays(outputs: object) -> Arrays:
    tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return tuple((tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in tensors)
