"""Measure: ONNX files as they are, on a profile's device; two of them interleaved, with an answer to which is faster."""

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
from pipeline.stages.prepare import connect

__all__ = ["Answer", "Comparison", "FileMeasurement", "Measured", "measure_files"]

Answer = Literal["faster", "slower", "undecided"]


@dataclass(frozen=True)
class FileMeasurement:
    """One file."""

    path: Path
    size_bytes: int
    shape: tuple[int, ...]
    """Of the input that it was fed with."""
    measured: Measurement | Failure


@dataclass(frozen=True)
class Comparison:
    """A file against the first one, run in turns in the same processes."""

    path: Path
    ratio_p50: Estimate
    """Its p50 over the first one's."""
    doubts: tuple[Remark, ...] = ()
    """Why the interval cannot be trusted."""

    @property
    def answer(self) -> Answer:
        """Faster or slower only where the whole interval says so, and can be trusted."""
        if self.doubts:
            return "undecided"
        if self.ratio_p50.high < 1:
            return "faster"
        return "slower" if self.ratio_p50.low > 1 else "undecided"


@dataclass(frozen=True)
class Measured:
    """What `compress measure` found."""

    fingerprint: Fingerprint
    load: Workload
    files: tuple[FileMeasurement, ...]
    comparisons: tuple[Comparison, ...]


def measure_files(
    profile: Profile, paths: Sequence[Path], period_ms: float = 0.0, sustain_s: float = 0.0, notify: Notify = lambda text: None
) -> Measured:
    """Measure each of `paths`, one at least, and all but the first against the first; over one connection.

    `period_ms`: one run begins so long after the one before. `sustain_s`: keep running for so long, in one process; the
    files are then not compared. Raises ModelError for what is no ONNX file, ProbeError and its kin.
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
            # in turns, both with the first one's input
            beside = probe.measure(graphs[number][0], replace(options, memory=False), Workload(period_ms))
            if isinstance(beside, Failure):
                notify(f"{paths[number]} cannot be compared with {paths[0]}: {beside.kind}: {beside.detail}")
            elif beside.relative_p50:
                comparisons.append(Comparison(paths[number], beside.relative_p50, beside.doubts))
    finally:
        probe.close()
    return Measured(fingerprint, load, tuple(found), tuple(comparisons))


def _read(path: Path) -> tuple[Graph, NDArray[np.float32]]:
    """The file, and numbers to feed it with."""
    network = read_network(path)
    numbers = np.random.default_rng(0).standard_normal(network.shape, dtype=np.float32)
    return Graph(network.data, network.structure), numbers
