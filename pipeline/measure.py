"""Measure: measures ONNX files on a profile's device, and compares each with the first one in interleaved runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.profile import Profile
from pipeline.core.remark import Remark
from pipeline.core.statistics import Estimate
from pipeline.graph.intake import read_network
from pipeline.probe.connection import Notify
from pipeline.probe.interface import Graph, MeasurementOptions, Reference, Workload
from pipeline.stages.shared_device import connect

__all__ = ["Answer", "Comparison", "FileMeasurement", "Measured", "measure_files"]

Answer = Literal["faster", "slower", "undecided"]


@dataclass(frozen=True)
class FileMeasurement:
    """The measurement of one file."""

    path: Path
    size_bytes: int
    shape: tuple[int, ...]
    """Shape of the input."""
    measured: Measurement | Failure


@dataclass(frozen=True)
class Comparison:
    """The comparison of a file with the first file. Both run in turn in the same processes."""

    path: Path
    ratio_p50: Estimate
    """p50 of the file divided by that of the first file."""
    doubts: tuple[Remark, ...] = ()
    """Reasons why the interval cannot be trusted."""

    @property
    def answer(self) -> Answer:
        """Faster or slower if the whole interval shows it and can be trusted; otherwise undecided."""
        if self.doubts:
            return "undecided"
        if self.ratio_p50.high < 1:
            return "faster"
        return "slower" if self.ratio_p50.low > 1 else "undecided"


@dataclass(frozen=True)
class Measured:
    """The result of `compress measure`."""

    fingerprint: Fingerprint
    load: Workload
    files: tuple[FileMeasurement, ...]
    comparisons: tuple[Comparison, ...]


def measure_files(
    profile: Profile, paths: Sequence[Path], period_ms: float = 0.0, sustain_s: float = 0.0, notify: Notify = lambda text: None
) -> Measured:
    """Measure each of `paths` (at least one) over one connection, and compare all others with the first.

    `period_ms`: time from the start of one run to the start of the next. `sustain_s`: time to keep running in one process; the
    files are then not compared. Raises ModelError for a file that is not ONNX, and ProbeError or a subclass.
    """
    graphs = [_read(path) for path in paths]
    load = Workload(period_ms, sustain_s, reference=False)
    options = MeasurementOptions(1 if sustain_s else profile.probe.final_processes)
    probe = connect(profile, Reference(*graphs[0]), notify)
    try:
        found = [
            FileMeasurement(path, len(graph.data), inputs.shape, probe.measure(graph, options, replace(load, inputs=inputs)))
            for path, (graph, inputs) in zip(paths, graphs, strict=True)
        ]
        fingerprint = next(
            (each.measured.fingerprint for each in found if isinstance(each.measured, Measurement)), probe.fingerprint
        )
        sound = [isinstance(each.measured, Measurement) for each in found]
        others = [number for number in range(1, len(paths)) if sound[0] and sound[number] and not sustain_s]
        comparisons = []
        for number in others:
            # both run in turn with the first file's input
            beside = probe.measure(graphs[number][0], replace(options, memory=False), Workload(period_ms))
            if isinstance(beside, Failure):
                notify(f"{paths[number]} cannot be compared with {paths[0]}: {beside.kind}: {beside.detail}")
            elif beside.relative_p50:
                comparisons.append(Comparison(paths[number], beside.relative_p50, beside.doubts))
    finally:
        probe.close()
    return Measured(fingerprint, load, tuple(found), tuple(comparisons))


def _read(path: Path) -> tuple[Graph, NDArray[np.float32]]:
    """Return the file as a graph, and random numbers as its input."""
    network = read_network(path)
    numbers = np.random.default_rng(0).standard_normal(network.shape, dtype=np.float32)
    return Graph(network.data, network.structure), numbers
