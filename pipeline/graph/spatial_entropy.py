"""Spatial entropy: how disordered a network's convolutional activations are; what paper B rewards, without labels.

Spatial entropy in the form of the aura matrix (Journel & Deutsch, 1993; Razlighi & Kehtarnavaz, 2009), which is how the
authors of paper B (Musat & Andonie, arXiv 2312.04918) define it elsewhere. For a channel quantised to levels g:

    p_gg' = share of neighbouring pixels with levels g and g', in one direction, symmetric
    H_1   = - sum_g p_g log p_g,   H_2 = - sum_gg' p_gg' log p_gg'
    H_R   = (H_2 - H_1) / H_1      0: a pixel tells its neighbour; 1: neighbours are independent
    H     = mean of H_R over right and down (left and up are the same pairs)

Paper B makes H small. What is left of the disorder tells more (docs/benchmarks/scoring.md): with l a convolution, c its channels,

    kept = harmonic mean over l of  min(1, sum_c H_2 of the plan / sum_c H_2 of the dense network)

A removed channel leaves nothing, one that went dead neither; and the layer that lets least through counts most.

Differences from the papers' H, each against a way in which an agent could cheat or a number could mislead:
 1. levels span the range of the dense network's channel, so that a plan cannot win by shrinking what it is divided by.
 2. pairs are counted over all images of the batch before anything is divided: one 4x4 map has 12 pairs for 256 cells.
 3. a channel with one level only has H_1 = 0; it is dead and counts as 1, the worst, so that killing channels does not pay.
    Channels that were dead in the dense network do not count.
"""

from dataclasses import dataclass, field, replace
from statistics import harmonic_mean

import torch
from torch import Tensor, nn

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
"""Of a layer with large maps only so many pixels per channel are counted, from so many images at least: a table has 256
cells, and counting all would cost as much again as the forward pass.
"""
_CHUNK = 2**20
"""Activations quantised at once: larger temporaries come fresh from the kernel each time, at three times the cost."""

Ranges = dict[str, tuple[Tensor, Tensor]]
"""Layer -> smallest and largest activation of each channel, (C,) each."""


@dataclass(frozen=True)
class Disorder:
    """Of a network, over its convolutions with maps of more than one pixel; the others say nothing."""

    entropy: float
    """H, 0 to 1, mean over convolutions of means over channels; dead channels count as 1."""
    kept: float
    """Share of the dense network's entropy, 0 to 1; 1 where no convolution has such a map."""
    dead_share: float
    """Channels that never change."""


@dataclass(frozen=True)
class SpatialEntropy:
    """Measures narrowed forms of one network on the same inputs against the same ranges."""

    space: PruneSpace
    inputs: Tensor
    """(N, C, H, W)"""
    ranges: Ranges
    whole: dict[str, float] = field(default_factory=dict)
    """Layer -> entropy of pairs in the dense network, summed over its channels."""
    batch: int = 64

    def of(self, module: nn.Module, kept: Kept) -> Disorder:
        """Disorder of `module`, which is the network with the channels in `kept`; it runs in evaluation mode."""
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
        """The same, with `module`, the dense network, as that of which something is kept."""
        everything = {group.name: tuple(range(group.channels)) for group in self.space.groups}
        whole = {name: float(pair_entropy(found).sum()) for name, found in self._count(module, everything).items()}
        return replace(self, whole={name: entropy for name, entropy in whole.items() if entropy > _DEAD})

    def _count(self, module: nn.Module, kept: Kept) -> dict[str, Tensor]:
        """Layer -> `pair_counts` of its channels that were not dead from the start."""
        counts: dict[str, Tensor] = {}
        places = {
            name: torch.from_numpy(self.space.remaining(f"{name}.weight", 0, len(low), kept))
            for name, (low, _) in self.ranges.items()
        }

        def count(name: str, maps: Tensor) -> None:
            low, high = (edge[places[name]] for edge in self.ranges[name])
            if min(maps.shape[2:]) > 1 and (alive := high > low).any():
                maps = maps[:: self._stride(maps)]
                if not alive.all():
                    maps, low, high = maps[:, alive], low[alive], high[alive]
                found = pair_counts(maps, low, high)
                counts[name] = counts[name] + found if name in counts else found

        show_activations(module, self.inputs, self.batch, count)
        return counts

    def _stride(self, maps: Tensor) -> int:
        images = len(self.inputs)
        return max(1, min(images // _IMAGES, images * maps[0, 0].numel() // _PIXELS))


def start_spatial_entropy(module: nn.Module, space: PruneSpace, inputs: Tensor) -> SpatialEntropy:
    """Take the ranges and the entropy of the dense `module` on `inputs`, (N, C, H, W)."""
    ranges: Ranges = {}

    def span(name: str, maps: Tensor) -> None:
        low, high = maps.amin((0, 2, 3)), maps.amax((0, 2, 3))
        if name in ranges:
            low, high = torch.minimum(low, ranges[name][0]), torch.maximum(high, ranges[name][1])
        ranges[name] = low, high

    show_activations(module, inputs, SpatialEntropy.batch, span)
    return SpatialEntropy(space, inputs, ranges).against(module)


def pair_counts(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Activations (N, C, H, W) and each channel's range (C,) -> neighbouring levels, right and down, (C, 2, LEVELS, LEVELS)."""
    channels = maps.shape[1]
    scale = (LEVELS / (high - low))[:, None, None]
    shift = -low[:, None, None] * scale
    first_cell = (torch.arange(channels, dtype=torch.int32) * LEVELS**2)[:, None, None]
    counts = torch.zeros(2, channels * LEVELS**2, dtype=torch.long)
    for part in maps.contiguous().split(max(1, _CHUNK // maps[0].numel())):
        # what is no number says as little as what never changes
        levels = torch.addcmul(shift, part, scale).clamp_(0, LEVELS - 1).nan_to_num_(0.0).to(torch.int32)
        cell = (levels * LEVELS).add_(first_cell)
        counts[0] += torch.bincount((cell[..., :-1] + levels[..., 1:]).flatten(), minlength=counts.shape[1])
        counts[1] += torch.bincount((cell[..., :-1, :] + levels[..., 1:, :]).flatten(), minlength=counts.shape[1])
    return counts.view(2, channels, LEVELS, LEVELS).transpose(0, 1)


def relative_entropy(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (C, 2, LEVELS, LEVELS) -> H (C,), 0 for the dead; and which channels are dead (C,)."""
    return _relative(*_entropies(counts))


def pair_entropy(counts: Tensor) -> Tensor:
    """Counts (C, 2, LEVELS, LEVELS) -> H_2 in nats, mean of both directions (C,); 0 for the dead."""
    return _entropies(counts)[0].mean(1)


def _entropies(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (C, 2, LEVELS, LEVELS) -> H_2 and H_1 in nats, both (C, 2)."""
    pairs = (counts + counts.mT).double()
    shares = pairs / pairs.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.special.entr(shares).sum((2, 3)), torch.special.entr(shares.sum(3)).sum(2)


def _relative(joint: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
    """H_2 and H_1, both (C, 2) -> H (C,), and which are dead (C,)."""
    relative = torch.where(single > _DEAD, (joint - single) / single.clamp_min(_DEAD), 0.0)
    return relative.mean(1), (single <= _DEAD).all(1)
