"""Spatial entropy: the disorder of convolutional activations, as a reward that needs no labels (paper B).

The definition uses the aura matrix (Journel & Deutsch, 1993; Razlighi & Kehtarnavaz, 2009), as the authors of paper B (Musat &
Andonie, arXiv 2312.04918) do elsewhere. For a channel quantised to levels g:

    p_gg' = share of neighbouring pixels with levels g and g', in one direction, symmetric
    H_1   = - sum_g p_g log p_g,   H_2 = - sum_gg' p_gg' log p_gg'
    H_R   = (H_2 - H_1) / H_1      0: a pixel determines its neighbour; 1: neighbours are independent
    H     = mean of H_R over right and down (left and up are the same pairs)

Paper B minimises H. The share of entropy kept ranks plans better (docs/benchmarks/scoring.md). For convolutions l, channels c:

    kept = harmonic mean over l of  min(1, sum_c H_2 of the plan / sum_c H_2 of the dense network)

Removed and dead channels add nothing. The harmonic mean gives the most weight to the layer that keeps the least.

Three differences from the papers' H prevent exploits by an agent and misleading values:
 1. Levels span the range of the dense network's channel, so that a plan gains nothing by shrinking that range.
 2. Pairs are counted over all images of the batch before division, because one 4x4 map has 12 pairs for 256 cells.
 3. A channel with only one level has H_1 = 0. It is dead and counts as 1, the worst value, so that dead channels do not pay.
    Channels that were dead in the dense network are not counted.
"""

from dataclasses import dataclass, field, replace
from statistics import harmonic_mean

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.plan import Kept, PruneSpace
from pipeline.graph.activations import show_activations

__all__ = [
    "LEVELS",
    "Disorder",
    "Ranges",
    "SpatialEntropy",
    "pair_counts",
    "pair_entropy",
    "relative_entropy",
    "start_spatial_entropy",
]

LEVELS = 16
_DEAD = 1e-6
_PIXELS, _IMAGES = 2**13, 16
"""Number of pixels per channel that are counted in a layer with large maps, and the least number of images they come from. A
table has 256 cells. Counting all pixels would cost as much time as the forward pass.
"""
_CHUNK = 2**20
"""Number of activations quantised at once. Larger buffers are allocated anew each time, which takes three times as long."""

Ranges = dict[str, tuple[Tensor, Tensor]]
"""Layer -> smallest and largest activation of each channel, both (C,)."""


@dataclass(frozen=True)
class Disorder:
    """Entropy of a network, over its convolutions with maps of more than one pixel."""

    entropy: float
    """H, 0 to 1: the mean over channels, then over convolutions. Dead channels count as 1."""
    kept: float
    """Share of the dense network's entropy, 0 to 1; 1 when no convolution has a map of more than one pixel."""
    dead_share: float
    """Share of channels that never change."""


@dataclass(frozen=True)
class SpatialEntropy:
    """Measures pruned versions of one network on the same inputs, with the same ranges."""

    space: PruneSpace
    inputs: Inputs
    """(N, C, H, W)"""
    ranges: Ranges
    whole: dict[str, float] = field(default_factory=dict)
    """Layer -> entropy of pairs in the dense network, summed over channels."""
    batch: int = 64

    def of(self, module: nn.Module, kept: Kept) -> Disorder:
        """Return the disorder of `module`, the network pruned to `kept`. Sets evaluation mode."""
        entropies, shares, dead = [], [], []
        found = {name: _entropies(counts) for name, counts in self._count(module, kept).items()}
        for joint, single in found.values():
            values, died = _relative(joint, single)
            entropies.append(float(values.masked_fill(died, 1.0).mean()))
            dead.append(float(died.double().mean()))
        for name, whole in self.whole.items():
            now = float(found[name][0].mean(1).sum()) if name in found else 0.0
            shares.append(min(1.0, now / whole))
        layers = max(len(entropies), 1)
        left = harmonic_mean(shares) if shares else 1.0
        return Disorder(sum(entropies) / layers, left, sum(dead) / layers)

    def against(self, module: nn.Module) -> "SpatialEntropy":
        """Return a copy that uses `module`, the dense network, as the reference for `kept`."""
        everything = {group.name: tuple(range(group.channels)) for group in self.space.groups}
        whole = {name: float(pair_entropy(found).sum()) for name, found in self._count(module, everything).items()}
        return replace(self, whole={name: entropy for name, entropy in whole.items() if entropy > _DEAD})

    def _count(self, module: nn.Module, kept: Kept) -> dict[str, Tensor]:
        """Layer -> `pair_counts` of the channels that are not dead in the dense network."""
        counts: dict[str, Tensor] = {}
        places = {
            name: torch.from_numpy(self.space.remaining(f"{name}.weight", 0, len(low), kept))
            for name, (low, _) in self.ranges.items()
        }

        def count(name: str, maps: Tensor) -> None:
            low, high = (edge[places[name]].to(maps.device) for edge in self.ranges[name])
            if min(maps.shape[2:]) > 1 and (alive := high > low).any():
                maps = maps[:: self._stride(maps)]
                if not alive.all():
                    maps, low, high = maps[:, alive], low[alive], high[alive]
                found = pair_counts(maps, low, high)
                counts[name] = counts[name] + found.cpu() if name in counts else found.cpu()

        show_activations(module, self.inputs, self.batch, count)
        return counts

    def _stride(self, maps: Tensor) -> int:
        images = len(self.inputs)
        return max(1, min(images // _IMAGES, images * maps[0, 0].numel() // _PIXELS))


def start_spatial_entropy(module: nn.Module, space: PruneSpace, inputs: Inputs) -> SpatialEntropy:
    """Measure the ranges and the entropy of the dense `module` on `inputs`, (N, C, H, W)."""
    ranges: Ranges = {}

    def span(name: str, maps: Tensor) -> None:
        low, high = maps.amin((0, 2, 3)).cpu(), maps.amax((0, 2, 3)).cpu()
        if name in ranges:
            low, high = torch.minimum(low, ranges[name][0]), torch.maximum(high, ranges[name][1])
        ranges[name] = low, high

    show_activations(module, inputs, SpatialEntropy.batch, span)
    return SpatialEntropy(space, inputs, ranges).against(module)


def pair_counts(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Count the pairs of levels, right and down, (C, 2, LEVELS, LEVELS), of maps (N, C, H, W) with channel ranges (C,)."""
    channels = maps.shape[1]
    scale = (LEVELS / (high - low))[:, None, None]
    shift = -low[:, None, None] * scale
    first_cell = (torch.arange(channels, dtype=torch.int32, device=maps.device) * LEVELS**2)[:, None, None]
    counts = torch.zeros(2, channels * LEVELS**2, dtype=torch.long, device=maps.device)
    for part in maps.contiguous().split(max(1, _CHUNK // maps[0].numel())):
        # NaN becomes level 0, so that it adds no entropy
        levels = torch.addcmul(shift, part, scale).clamp_(0, LEVELS - 1).nan_to_num_(0.0).to(torch.int32)
        cell = (levels * LEVELS).add_(first_cell)
        counts[0] += torch.bincount((cell[..., :-1] + levels[..., 1:]).flatten(), minlength=counts.shape[1])
        counts[1] += torch.bincount((cell[..., :-1, :] + levels[..., 1:, :]).flatten(), minlength=counts.shape[1])
    return counts.view(2, channels, LEVELS, LEVELS).transpose(0, 1)


def relative_entropy(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return H, (C,), and whether each channel is dead, (C,), from counts (C, 2, LEVELS, LEVELS). H is 0 for dead channels."""
    return _relative(*_entropies(counts))


def pair_entropy(counts: Tensor) -> Tensor:
    """Return H_2 in nats, (C,), the mean of both directions, from counts (C, 2, LEVELS, LEVELS). 0 for dead channels."""
    return _entropies(counts)[0].mean(1)


def _entropies(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (C, 2, LEVELS, LEVELS) -> H_2 and H_1 in nats, both (C, 2)."""
    pairs = (counts + counts.mT).double()
    shares = pairs / pairs.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.special.entr(shares).sum((2, 3)), torch.special.entr(shares.sum(3)).sum(2)


def _relative(joint: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
    """H_2 and H_1, both (C, 2) -> H (C,), and whether each channel is dead (C,)."""
    relative = torch.where(single > _DEAD, (joint - single) / single.clamp_min(_DEAD), 0.0)
    return relative.mean(1), (single <= _DEAD).all(1)
