"""Probe: the small door through which figures come in."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.measurement import Failure, Fingerprint, Measurement

__all__ = ["Graph", "Probe", "Reference"]


@dataclass(frozen=True)
class Graph:
    """An ONNX file on its way to be measured."""

    data: bytes
    structure: str
    """Hash of its ops and shapes."""
    expected: NDArray[np.float32] | None = None
    """The right answer to the reference input, flat; an answer that differs is a failure."""


@dataclass(frozen=True)
class Reference:
    """What every file is timed against, and the input they all get."""

    graph: Graph
    inputs: NDArray[np.float32]
    """One batch as the network takes it, (1, C, H, W)."""


class Probe(Protocol):
    """Weighs ONNX files. Implementations: `LocalProbe`, `SimulatedProbe`; `CachedProbe` wraps either."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Where and how figures are taken."""

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Cores of this machine on which runs are timed; other work must keep off them meanwhile."""

    def measure(self, graph: Graph, processes: int, *, fresh: bool = False) -> Measurement | Failure:
        """Time and weigh `graph` in `processes` fresh processes, interleaved with the reference.

        `fresh` demands new runs where a stored answer would do. A file that does not load, run or answer rightly, and
        a process that hangs or dies, give a Failure; ProbeError is raised only when nothing can be measured any more.
        """

    def close(self) -> None:
        """End all processes."""
