"""Probe: the small door through which figures come in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.measurement import Failure, Fingerprint, Measurement

__all__ = ["Effort", "Graph", "Probe", "Reference"]


@dataclass(frozen=True)
class Graph:
    """An ONNX file on its way to be measured."""

    data: bytes
    structure: str
    """Hash of its ops and shapes."""
    expected: Callable[[], NDArray[np.float32]] | None = None
    """Gives the right answer to the reference input; another answer is a failure. Asked for when the runs are over."""


@dataclass(frozen=True)
class Reference:
    """What every file is timed against, and the input they all get."""

    graph: Graph
    inputs: NDArray[np.float32]
    """One batch as the network takes it, (1, C, H, W)."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on one measurement."""

    processes: int
    """Fresh processes that time the file."""
    memory: bool = True
    """One more that weighs it."""
    fresh: bool = True
    """Demand new runs where a stored answer would do; and let the processes load one by one, so that session creation is timed
    alone."""


class Probe(Protocol):
    """Weighs ONNX files. Implementations: `LocalProbe`, `SimulatedProbe`; `CachedProbe` wraps either."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Where and how figures are taken."""

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Cores of this machine on which runs are timed; other work must keep off them meanwhile."""

    def measure(self, graph: Graph, effort: Effort) -> Measurement | Failure:
        """Time and weigh `graph` in fresh processes, interleaved with the reference.

        A file that does not load, run or answer rightly, and
        a process that hangs or dies, give a Failure; ProbeError is raised only when nothing can be measured any more.
        """

    def close(self) -> None:
        """End all processes."""
