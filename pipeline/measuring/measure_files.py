"""Measure files: measures ONNX files on a profile's device, and compares each with the first one in interleaved runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.core.feeds import shapes_text
from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.network_input import NetworkInput
from pipeline.core.node_times import NodeTime, fallback
from pipeline.core.profile import Profile, Runtime
from pipeline.core.progress import Progress, no_progress
from pipeline.core.providers import CPU
from pipeline.core.remark import Remark
from pipeline.core.statistics import Estimate
from pipeline.graph.given.door import Shapes
from pipeline.measuring.given_file import GivenFile, read_file
from pipeline.probe.connection import Notify
from pipeline.probe.interface import MeasurementOptions, Reference, Workload
from pipeline.probe.worker_probe import WorkerProbe
from pipeline.stages.shared_device import connect
from pipeline.system.npz_file import read_npz

__all__ = [
    "Answer",
    "Comparison",
    "FileMeasurement",
    "HowToMeasure",
    "Measured",
    "allowing",
    "check_provider",
    "measure_files",
    "read_files",
]

Answer = Literal["faster", "slower", "undecided"]


@dataclass(frozen=True)
class HowToMeasure:
    """Options for measuring files."""

    period_ms: float = 0.0
    """Time from the start of one run to the start of the next."""
    sustain_s: float = 0.0
    """Time to keep running in one process. The files are then not compared."""
    shapes: Shapes = field(default_factory=dict)
    """Sizes of inputs by name, for free dimensions. The name '' stands for the only input of a file."""
    inputs: Path | None = None
    """An .npz file with values of the inputs. None: random values."""
    profile_layers: bool = False
    """Whether to time each node too, in a process and in runs of its own."""
    allow_fallback: bool = False
    """Whether the CPU provider may run nodes that the profile's provider does not. The profile may allow it, too."""


AS_IT_IS = HowToMeasure()


@dataclass(frozen=True)
class FileMeasurement:
    """The measurement of one file."""

    path: Path
    size_bytes: int
    inputs: tuple[NetworkInput, ...]
    measured: Measurement | Failure
    nodes: tuple[NodeTime, ...] | None = None
    """Time and provider of each node; None if they were not asked for and not needed."""
    fallback: str | None = None
    """Which nodes the profile's provider did not run; None if it ran all."""
    random_inputs: bool = True
    """Whether the values of the inputs were random."""

    @property
    def shapes(self) -> str:
        """Shapes of the inputs for people."""
        return shapes_text([each.shape for each in self.inputs])


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
    profiled: bool = False
    """Whether the times of nodes were asked for."""


def measure_files(
    profile: Profile,
    paths: Sequence[Path],
    how: HowToMeasure = AS_IT_IS,
    notify: Notify = lambda text: None,
    progress: Progress = no_progress,
) -> Measured:
    """Measure each of `paths` (at least one) over one connection, and compare all others with the first.

    A file that the profile's provider does not run as a whole gets a Failure of the kind 'fallback', unless that is allowed.
    Raises ModelError for a file that is not ONNX or whose inputs have no sizes, DataError for values that do not fit, and
    ProbeError or a subclass.
    """
    files = read_files(paths, how)
    profile = allowing(profile, how)
    load = Workload(how.period_ms, how.sustain_s, reference=False)
    options = MeasurementOptions(1 if how.sustain_s else profile.probe.final_processes)
    total = len(files) if how.sustain_s else 2 * len(files) - 1
    probe = connect(profile, Reference(files[0].graph, files[0].feeds), notify)
    try:
        found = []
        for number, file in enumerate(files):
            progress(number, total, f"{file.path.name}, in {options.processes} processes")
            found.append(_measured(probe, file, how, options, load))
        fingerprint = next(
            (each.measured.fingerprint for each in found if isinstance(each.measured, Measurement)), probe.fingerprint
        )
        comparisons = []
        for number in range(1, 1 if how.sustain_s else len(files)):
            if isinstance(found[0].measured, Measurement) and isinstance(found[number].measured, Measurement):
                progress(len(files) + number - 1, total, f"{files[number].path.name} in turn with {files[0].path.name}")
                comparison = _compared(probe, files[number], options, load)
                if isinstance(comparison, Comparison):
                    comparisons.append(comparison)
                else:
                    notify(f"{paths[number]} cannot be compared with {paths[0]}: {comparison.kind}: {comparison.detail}")
    finally:
        probe.close()
    return Measured(fingerprint, load, tuple(found), tuple(comparisons), how.profile_layers)


def read_files(paths: Sequence[Path], how: HowToMeasure) -> list[GivenFile]:
    """Read the files and the values of their inputs. Raises ModelError and DataError."""
    arrays = read_npz(how.inputs) if how.inputs else None
    return [read_file(path, how.shapes, arrays, how.inputs) for path in paths]


def allowing(profile: Profile, how: HowToMeasure) -> Profile:
    """The profile, with the fallback that `how` allows."""
    if not how.allow_fallback:
        return profile
    return profile.model_copy(update={"runtime": profile.runtime.model_copy(update={"allow_fallback": True})})


def check_provider(probe: WorkerProbe, file: GivenFile, runtime: Runtime) -> tuple[tuple[NodeTime, ...] | Failure, str | None]:
    """The nodes of `file` as the runtime runs them, and which of them its provider leaves to others.

    In place of the nodes, there is a Failure if the file does not run, or if other providers run nodes without permission.
    """
    nodes = probe.node_times(file.graph, file.feeds)
    if isinstance(nodes, Failure):
        return nodes, None
    others = fallback(nodes, runtime.execution_provider)
    if others and not runtime.allow_fallback:
        return Failure("fallback", others), others
    return nodes, others


def _measured(
    probe: WorkerProbe, file: GivenFile, how: HowToMeasure, options: MeasurementOptions, load: Workload
) -> FileMeasurement:
    runtime = probe.profile.runtime
    nodes, others = None, None
    if how.profile_layers or runtime.execution_provider != CPU:
        # before the timed runs, and never together with them: the profiler slows the runs
        nodes, others = check_provider(probe, file, runtime)
    if isinstance(nodes, Failure):
        measured: Measurement | Failure = nodes
        nodes = None
    else:
        measured = probe.measure(file.graph, options, replace(load, inputs=file.feeds))
    random_inputs = how.inputs is None
    return FileMeasurement(file.path, file.size_bytes, file.inputs, measured, nodes, others, random_inputs)


def _compared(probe: WorkerProbe, file: GivenFile, options: MeasurementOptions, load: Workload) -> Comparison | Failure:
    """Compare `file` with the reference of the probe. Both run in turn with the reference's inputs."""
    beside = probe.measure(file.graph, replace(options, memory=False), replace(load, reference=True))
    if isinstance(beside, Failure):
        return beside
    if beside.relative_p50 is None:
        return Failure("run-error", "the first file was not timed")
    return Comparison(file.path, beside.relative_p50, beside.doubts)
