"""Channel entropy: the effective number of independent channels in each layer, as a reward that needs no labels.

Let R be the correlation matrix of a layer's C active channels over the pixels of its activations, and l_i the eigenvalues of
R / C. The eigenvalues are at least 0 and sum to 1:

    S = - sum_i l_i log l_i             von Neumann's entropy of R / C; Roy & Vetterli (2007): exp(S) is the effective rank
    kept = harmonic mean over layers of  min(1, exp(S) of the plan / exp(S) of the dense network)

exp(S) is C where all channels are independent, and 1 where all are equal. Removed and constant channels do not count, and a
channel that repeats another adds almost nothing; a sum over channels would count it fully
(docs/decisions/0016-channels-that-say-the-same.md). The harmonic mean gives the most weight to the layer that keeps the least.
Maps of one pixel are left out. So are depthwise convolutions, because they keep the channels of the layer before them.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from statistics import harmonic_mean

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.graph.activations import show_activations

__all__ = ["ChannelEntropy", "effective_channels", "start_channel_entropy"]

_PIXELS = 2048
"""Approximate number of pixels sampled per layer, evenly over all images. More pixels cost time and rank plans no better."""
_BATCH = 64


@dataclass(frozen=True)
class ChannelEntropy:
    """Measures pruned versions of one network on the same inputs."""

    inputs: Inputs
    """(N, C, H, W)"""
    whole: dict[str, float]
    """Layer -> effective channels of the dense network. Only convolutions with maps of more than one pixel are included."""

    def kept(self, module: nn.Module) -> float:
        """Return the share of the dense network's effective channels that `module` keeps, 0 to 1. Sets evaluation mode."""
        found = _look(module, self.inputs, self.whole)
        return harmonic_mean([min(1.0, found.get(name, 0.0) / whole) for name, whole in self.whole.items()])


def start_channel_entropy(module: nn.Module, inputs: Inputs) -> ChannelEntropy:
    """Measure the effective channels of the dense `module` on `inputs`, (N, C, H, W)."""
    mixing = [name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d) and not _depthwise(layer)]
    return ChannelEntropy(inputs, {name: count for name, count in _look(module, inputs, mixing).items() if count > 0})


def effective_channels(pixels: Tensor) -> float:
    """Return exp(S), 1 to C, of activations (pixels, C); 0 when no channel is active."""
    centred = pixels - pixels.mean(0)
    lengths = centred.norm(dim=0)
    # after centring, a constant channel still has rounding errors, and these would correlate
    alive = lengths > 1e-5 * pixels.norm(dim=0)
    if not alive.any():
        return 0.0
    unit = centred[:, alive] / lengths[alive]
    shares = torch.linalg.eigvalsh(unit.T @ unit).double().clamp_min(0)
    return float(torch.special.entr(shares / shares.sum()).sum().exp())


def _look(module: nn.Module, inputs: Inputs, names: Collection[str]) -> dict[str, float]:
    """Layer -> effective channels, for the layers in `names`."""
    seen: dict[str, list[Tensor]] = {}

    def sample(name: str, maps: Tensor) -> None:
        if name in names and min(maps.shape[2:]) > 1:
            places = maps[0, 0].numel()
            step = max(1, len(inputs) * places // _PIXELS)
            while math.gcd(step, places) > 1:  # a common divisor would sample only some columns
                step += 1
            chosen = torch.arange(0, len(maps) * places, step, device=maps.device)
            seen.setdefault(name, []).append(maps.flatten(2)[chosen // places, :, chosen % places].cpu())

    show_activations(module, inputs, _BATCH, sample)
    return {name: effective_channels(torch.cat(parts)) for name, parts in seen.items()}


def _depthwise(layer: nn.Conv2d) -> bool:
    return 1 < layer.groups == layer.in_channels == layer.out_channels
