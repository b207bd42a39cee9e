"""Probe: the interface of everything that measures ONNX files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.core.feeds import Feeds
from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.weight_slices import WeightSlices

__all__ = ["Graph", "MeasurementOptions", "Probe", "Reference", "Workload"]


@dataclass(frozen=True)
class Graph:
    """An ONNX file to be measured."""

    source: bytes | Callable[[], bytes]
    """The file, or a function that makes it. The function is not called if `weight_slices` are sent instead."""
    structure: str
    """Hash of operators, attributes and shapes; see `pipeline.graph.structure`."""
    expected: Callable[[], Feeds] | None = None
    """Returns the right outputs for the reference inputs. Others are a failure. It is called after the timed runs."""
    weight_slices: WeightSlices | None = None
    """The file as cuts from base weights, for a probe whose worker keeps these."""
    tolerance: float = 1e-3
    """Outputs are right if they differ from `expected` by at most this share of the largest one."""

    @property
    def data(self) -> bytes:
        """Return the file, or make it."""
        return self.source if isinstance(self.source, bytes) else self.source()


@dataclass(frozen=True)
class Reference:
    """The graph that every file is timed against, and the inputs of all files."""

    graph: Graph
    inputs: Feeds
    """One sample as a batch, (1, C, H, W): an array, or one array per input in the order of the file's inputs."""


@dataclass(frozen=True)
class MeasurementOptions:
    """Options of one measurement."""

    processes: int
    """Number of new processes that time the file."""
    memory: bool = True
    """Whether one more process measures memory."""
    fresh: bool = True
    """Whether to measure again even if a stored measurement exists. The processes then load the file one by one, so that the time
    of session creation is not shared."""
    ahead: bool = True
    """Whether a similar measurement follows. The processes for it are started after this one."""
    every_board: bool = False
    """Whether all boards of a pool measure the file, at least two. Otherwise one of them does."""


@dataclass(frozen=True)
class Workload:
    """How the runs follow each other, and what runs in turn with them."""

    period_ms: float = 0.0
    """Time from the start of one run to the start of the next; the machine idles in between. 0: back to back."""
    sustain_s: float = 0.0
    """How long to keep the file running, regardless of the number of runs. 0: the number of runs in the profile."""
    reference: bool = True
    """Whether to time the reference in turn with the file."""
    inputs: Feeds | None = None
    """Inputs that replace the reference's."""
    beside: Graph | None = None
    """Graph to time in turn with the file, in place of the reference."""


class Probe(Protocol):
    """Measures ONNX files. Implementations: `LocalProbe`, `SshProbe`, `SimulatedProbe`. `CachedProbe` wraps any of them."""

    @property
    def fingerprint(self) -> Fingerprint:
        """The machine, runtime and settings of the measurements."""

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Cores of this machine on which runs are timed. Other work must not use them during a measurement."""

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """Measure latency and memory of `graph` in new processes, in turn with the reference.

        Returns a Failure when the file does not load, does not run or gives a wrong output, and when a process hangs or
        dies. Raises ProbeError only when no further measurement is possible.
        """

    def close(self) -> None:
        """End all processes."""
