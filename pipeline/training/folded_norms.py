"""Folded norms: compute a BatchNorm as a part of the layer before it, while a network is scored.

A norm in evaluation mode multiplies and shifts the channels of the layer that it follows, so the layer's own weights can do it.
Which norms directly follow a layer is found by running the network once; pruned copies of the network keep what was found.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pipeline.core.batch import Inputs, outputs_of
from pipeline.training.statistics_shift import norms_of

__all__ = ["find_folds", "folded", "set_folds"]

_ATTRIBUTE = "_compress_folded_norms"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
ROUNDING = 1e-3
"""Largest difference of outputs that counts as rounding, as a share of the largest output."""

Fold = tuple[str, str]
"""The names of a layer and of the norm that directly follows it."""


def set_folds(module: nn.Module, folds: Sequence[Fold]) -> None:
    """Store in `module` the norms that `folded` folds. Copies of the module keep them."""
    setattr(module, _ATTRIBUTE, tuple(folds))


def find_folds(module: nn.Module, inputs: Inputs) -> tuple[Fold, ...]:
    """Return the norms of `module` that can be folded into the layer before them. `inputs`: some samples, (N, C, H, W).

    Each is tested in a copy with random statistics: with the folded norms, the outputs must stay the same but for rounding.
    """
    tried = copy.deepcopy(module).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for norm in norms_of(tried).values():
            if norm.running_mean is not None and norm.running_var is not None:
                norm.running_mean += 0.5 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
                norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2.0)
        found, expected = _followers(tried, inputs)
        if _same_outputs(tried, found, inputs, expected):
            return found
        alone = tuple(fold for fold in found if _same_outputs(tried, (fold,), inputs, expected))
        return alone if _same_outputs(tried, alone, inputs, expected) else ()


@contextmanager
def folded(module: nn.Module) -> Iterator[None]:
    """Fold the norms that `set_folds` stored, inside the block. `module` is in evaluation mode; its statistics must not change.

    Afterwards the module has its own layers and parameters again.
    """
    folds: tuple[Fold, ...] = getattr(module, _ATTRIBUTE, ())
    layers = dict(module.named_modules())
    replaced: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []
    weights: list[tuple[nn.Module, nn.Parameter | None, nn.Parameter | None]] = []
    try:
        for layer_name, norm_name in folds:
            layer, norm = layers.get(layer_name), layers.get(norm_name)  # None in a dropped block
            if not isinstance(layer, LAYERS) or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
                continue
            if len(norm.running_mean) != len(layer.weight) or norm.running_var is None:
                continue
            weights.append((layer, layer._parameters["weight"], layer._parameters["bias"]))
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            parent, _, child = norm_name.rpartition(".")
            holder = layers[parent]._modules
            replaced.append((holder, child, norm))
            # what else a kind of BatchNorm does, such as an activation, is done by its children
            holder[child] = nn.Sequential(*norm.children()) if len(norm._modules) else nn.Identity()
        yield
    finally:
        for holder, child, own in replaced:
            holder[child] = own
        for owner, weight, bias in weights:
            owner._parameters.update(weight=weight, bias=bias)


def _followers(module: nn.Module, inputs: Inputs) -> tuple[tuple[Fold, ...], tuple[Tensor, ...]]:
    """Each layer whose output a norm gets, where both run once and share no weights; and the outputs for `inputs`."""
    names: dict[nn.Module, str] = {layer: name for name, layer in module.named_modules() if isinstance(layer, LAYERS)}
    norms: dict[nn.Module, str] = {norm: name for name, norm in norms_of(module).items()}
    owners = Counter(id(tensor) for layer in module.modules() for tensor in layer._parameters.values() if tensor is not None)
    runs: Counter[nn.Module] = Counter()
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # holds the tensors, because ids of freed objects are used again
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        runs[layer] += 1
        outputs[id(output)] = layer, output

    def before(norm: nn.Module, read: tuple[Tensor, ...]) -> None:
        runs[norm] += 1
        if read and id(read[0]) in outputs:
            pairs.append((outputs[id(read[0])][0], norm))

    handles = [layer.register_forward_hook(after) for layer in names]
    handles += [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        answer = outputs_of(module(inputs))
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(layer for layer, _ in pairs)
    found = tuple(
        (names[layer], norms[norm])
        for layer, norm in pairs
        if runs[layer] == runs[norm] == readers[layer] == 1 and not any(owners[id(t)] > 1 for t in _tensors(layer, norm))
    )
    return found, answer


def _tensors(*layers: nn.Module) -> list[nn.Parameter]:
    return [tensor for layer in layers for tensor in layer._parameters.values() if tensor is not None]


def _same_outputs(module: nn.Module, folds: Sequence[Fold], inputs: Inputs, expected: tuple[Tensor, ...]) -> bool:
    """Whether the outputs stay the same with `folds`. Any exception in the user's code counts as no."""
    set_folds(module, folds)
    try:
        with folded(module):
            found = outputs_of(module(inputs))
    except Exception:
        return False
    return all(_same(*pair) for pair in zip(found, expected, strict=True))


def _same(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return bool((found - expected).abs().max() <= ROUNDING * largest) if expected.numel() else True
