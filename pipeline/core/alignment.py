"""Alignment: which channel widths a device computes fast, and which take as long as a wider one."""

import itertools
from dataclasses import dataclass

__all__ = ["STEPS", "Alignment", "ConvPair", "Sweep"]

STEPS = (4, 8, 16, 32)
"""Channel steps that a sweep can tell apart."""
SHARE = 2 / 3
"""A coarser step is chosen when at least this share of the widths that it skips are dominated."""
GROWTH = 0.25
"""More channels count as free when they cost at most this share of their proportional cost."""


@dataclass(frozen=True)
class ConvPair:
    """A convolution of the network and the convolution that reads it. The layers between them have the width that is swept."""

    name: str
    """Name of the first convolution in the network."""
    in_channels: int
    channels: int
    """Channels between the two convolutions when nothing is removed."""
    out_channels: int
    kernels: tuple[int, int]
    strides: tuple[int, int]
    side: tuple[int, int]
    """Height and width of the first convolution's input."""


@dataclass(frozen=True)
class Sweep:
    """Latencies of one pair at several widths. Every round measures each width."""

    pair: ConvPair
    latency_ms: dict[int, tuple[float, ...]]
    """Width -> median latency of each round, in ms."""

    @property
    def dominated(self) -> tuple[int, ...]:
        """Widths at which more channels are free or almost free (`GROWTH`). The fastest round of each width is compared."""
        best = {width: min(rounds) for width, rounds in self.latency_ms.items()}

        def free(width: int, wider: int) -> bool:
            return wider > width and best[wider] <= best[width] * (1 + GROWTH * (wider - width) / width)

        return tuple(sorted(width for width in best if any(free(width, wider) for wider in best)))


@dataclass(frozen=True)
class Alignment:
    """The sweeps of one device, runtime and network."""

    sweeps: tuple[Sweep, ...]

    @property
    def step(self) -> int:
        """The channel step: it starts at 4 and doubles as long as most of the newly skipped widths are dominated."""
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
        """Return the dominated widths that the sweeps found for groups of `channels` channels."""
        return frozenset(
            width for sweep in self.sweeps if sweep.pair.channels == channels for width in sweep.dominated if width < channels
        )
