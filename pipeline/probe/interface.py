"""Probe: the small door through which figures come in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.weight_slices import WeightSlices

__all__ = ["Graph", "MeasurementOptions", "Probe", "Reference", "Workload"]


@dataclass(frozen=True)
class Graph:
    """An ONNX file on its way to be measured."""

    source: bytes | Callable[[], bytes]
    """The file, or what makes it; it need not be made where the recipe will do."""
    structure: str
    """Hash of its ops and shapes."""
    expected: Callable[[], NDArray[np.float32]] | None = None
    """Gives the right answer to the reference input; another answer is a failure. Asked for when the runs are over."""
    weight_slices: WeightSlices | None = None
    """The file as a difference from a base, for a probe whose worker keeps the base."""

    @property
    def data(self) -> bytes:
        """The file."""
        return self.source if isinstance(self.source, bytes) else self.source()


@dataclass(frozen=True)
class Reference:
    """What every file is timed against, and the input they all get."""

    graph: Graph
    inputs: NDArray[np.float32]
    """One batch as the network takes it, (1, C, H, W)."""


@dataclass(frozen=True)
class MeasurementOptions:
    """How much is spent on one measurement."""

    processes: int
    """Fresh processes that time the file."""
    memory: bool = True
    """One more that weighs it."""
    fresh: bool = True
    """Demand new runs where a stored answer would do; and let the processes load one by one, so that session creation is timed
    alone."""


@dataclass(frozen=True)
class Workload:
    """How the runs follow each other."""

    period_ms: float = 0.0
    """One run begins so long after the one before, and the machine idles between; 0: back to back."""
    sustain_s: float = 0.0
    """Keep the file running for so long, whatever the number of runs; 0: as many runs as the profile says."""
    reference: bool = True
    """Time the reference in between."""
    inputs: NDArray[np.float32] | None = None
    """In place of the reference's."""
    beside: Graph | None = None
    """Time this one in between, in place of the reference."""


class Probe(Protocol):
    """Weighs ONNX files. Implementations: `LocalProbe`, `SshProbe`, `SimulatedProbe`; `CachedProbe` wraps any."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Where and how figures are taken."""

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Cores of this machine on which runs are timed; other work must keep off them meanwhile."""

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """Time and weigh `graph` in fresh processes, interleaved with the reference.

        A file that does not load, run or answer rightly, and
        a process that hangs or dies, give a Failure; ProbeError is raised only when nothing can be measured any more.
        """

    def close(self) -> None:
        """End all processes."""
