"""Alignment: which widths a device computes fast, and which it computes no faster than wider ones."""

import itertools
from dataclasses import dataclass

__all__ = ["STEPS", "Alignment", "ConvPair", "Sweep"]

STEPS = (4, 8, 16, 32)
"""Steps that a sweep can tell apart."""
SHARE = 2 / 3
"""A coarser step is taken when so many of the widths that it skips are dominated."""
GROWTH = 0.25
"""More channels are as good as free when they cost less than this share of what they would in proportion."""


@dataclass(frozen=True)
class ConvPair:
    """A convolution and the one that reads it, as they stand in the network; what lies between them has the width."""

    name: str
    """Of the first, in the network."""
    in_channels: int
    channels: int
    """Between the two, when nothing is removed."""
    out_channels: int
    kernels: tuple[int, int]
    strides: tuple[int, int]
    side: tuple[int, int]
    """Height and width of the first one's input."""


@dataclass(frozen=True)
class Sweep:
    """One pair at several widths, each measured in every round."""

    pair: ConvPair
    latency_ms: dict[int, tuple[float, ...]]
    """Width -> median of each round."""

    @property
    def dominated(self) -> tuple[int, ...]:
        """Widths for which there are more channels in no more time, or as good as none: the best round of each counts."""
        best = {width: min(rounds) for width, rounds in self.latency_ms.items()}

        def free(width: int, wider: int) -> bool:
            return wider > width and best[wider] <= best[width] * (1 + GROWTH * (wider - width) / width)

        return tuple(sorted(width for width in best if any(free(width, wider) for wider in best)))


@dataclass(frozen=True)
class Alignment:
    """What the sweeps of one device, runtime and network say."""

    sweeps: tuple[Sweep, ...]

    @property
    def step(self) -> int:
        """From 4 on doubled as long as most of the widths that this skips are dominated."""
        for finer, coarser in itertools.pairwise(STEPS):
            skipped = [
                width in sweep.dominated
                for sweep in self.sweeps
                for width in sweep.latency_ms
                if width % finer == 0 and width % coarser and width < max(sweep.latency_ms)
            ]
            if not skipped or sum(skipped) < SHARE * len(skipped):
                return finer
        return STEPS[-1]

    def dominated(self, channels: int) -> frozenset[int]:
        """Widths of a group of so many channels that were seen to be dominated."""
        return frozenset(
            width for sweep in self.sweeps if sweep.pair.channels == channels for width in sweep.dominated if width < channels
        )
