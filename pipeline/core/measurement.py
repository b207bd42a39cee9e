"""Measurement: what the probe saw of one file, raw, and the figures that follow from it."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pipeline.core import statistics
from pipeline.core.device_state import DeviceState
from pipeline.core.latency_predictor import LatencyPredictor
from pipeline.core.remark import Remark, RemarkKind, StoredRemark
from pipeline.core.samples import Samples, select
from pipeline.core.statistics import Estimate

__all__ = ["Failure", "FailureKind", "Fingerprint", "Measurement", "Memory", "Mode", "TimedProcess", "select_samples"]

Mode = Literal["device", "host-emulated", "predicted", "simulated"]

FailureKind = Literal[
    "timeout",
    "killed",
    "illegal-instruction",
    "segfault",
    "crashed",
    "load-error",
    "run-error",
    "wrong-output",
    "not-proven",
    "lost",
]


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no figures. The search goes on."""

    kind: FailureKind
    detail: str


@dataclass(frozen=True)
class Fingerprint:
    """Where and how a figure was taken. Figures of different fingerprints are never compared."""

    mode: Mode
    device: str
    """The profile's device."""
    machine: str
    """The processor that really ran it."""
    architecture: str
    onnxruntime: str
    threads: int
    """Threads that really ran."""
    profile_threads: int
    """Threads that the profile asks for."""
    settings: tuple[tuple[str, str | int | bool], ...]
    """Provider, optimisation level, spinning, arena and the rest, as handed to ONNX Runtime."""
    identity: str = ""
    """Which one it is of several machines of the same kind; empty for machines that do not exist."""
    system: str = ""
    """Kernel and its version."""
    wheel: str | None = None
    """The build of onnxruntime: Python, interface and platform of its wheel; null where it has none."""
    error: float = 0.0
    """Of a prediction, as a share of it; see `LatencyPredictor`."""

    @property
    def facts(self) -> dict[str, str]:
        """What must be the same for figures to be compared, as plain text."""
        return {key: str(value) for key, value in vars(self).items() if key != "settings"} | {
            key: str(value) for key, value in self.settings
        }

    @property
    def stamp(self) -> str:
        """What stands beside every figure: 'device', or 'host-emulated, 2 of 4 threads'."""
        mode = f"predicted ± {100 * self.error:.1f} % from figures of this machine" if self.mode == "predicted" else self.mode
        if self.threads < self.profile_threads:
            return f"{mode}, {self.threads} of {self.profile_threads} threads"
        return mode


@dataclass(frozen=True)
class TimedProcess:
    """One fresh process: blocks of timed runs, of the file and of the reference in turn."""

    latency_ms: tuple[tuple[float, ...], ...]
    """Blocks x runs."""
    reference_latency_ms: tuple[tuple[float, ...], ...]
    """Blocks x runs of the dense graph, each block next to the file's own."""
    session_creation_ms: float
    first_run_ms: float
    cpu_ms_per_run: float
    """Processor time of all threads, per timed run of the file."""
    preemptions: int | None
    """Times that another program took the core; null where the system does not count them."""
    timed_ms: float
    """Wall time from the first warm-up run to the last timed one."""
    course: tuple[tuple[float, float | None], ...] = ()
    """Under a sustained load, at the end of each block: seconds since the first, temperature in degrees Celsius."""
    lost_ms: tuple[tuple[float, ...], ...] = ()
    """Blocks x runs: how much of each run the process did not run although it could have; empty where that is not known."""
    reference_lost_ms: tuple[tuple[float, ...], ...] = ()
    """The same of the dense graph's runs."""
    foreign_ms: float | None = None
    """How long other programs ran on the cores meanwhile, of all cores together; null where the system does not tell."""
    stolen_ms: float | None = None
    """How long a hypervisor ran others on the cores meanwhile; null where the system does not tell."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a fresh process that only loads and runs the file (VmHWM); null where not available."""

    baseline_bytes: int | None
    """After importing the runtime, before loading anything."""
    session_bytes: int | None
    """After creating the session."""
    peak_bytes: int | None
    """The highest up to the end, baseline included."""
    rss_bytes: int | None = None
    """At the end, counted exactly (smaps_rollup); the others are the kernel's quick counters."""


FOREIGN_SHARE, FOREIGN_MS = 0.05, 40.0
"""Of the time on the cores, and what a clock of 10 ms may be off in several short processes."""


def select_samples(processes: tuple[TimedProcess, ...], fingerprint: Fingerprint) -> Samples:
    """The runs of `processes` that count.

    Several threads wait for each other's cores when the system puts two of them on one. That belongs to the device; so losses
    of several threads count only where other programs used the cores.
    """
    provider = dict(fingerprint.settings).get("provider", "CPUExecutionProvider")
    alone = fingerprint.threads == 1 and provider == "CPUExecutionProvider"
    foreign_ms = [process.foreign_ms for process in processes]
    timed_ms = sum(process.timed_ms for process in processes) * fingerprint.threads
    undisturbed = not alone and None not in foreign_ms and sum(filter(None, foreign_ms)) <= FOREIGN_SHARE * timed_ms + FOREIGN_MS
    return select(
        tuple(process.latency_ms for process in processes),
        tuple(() if undisturbed else process.lost_ms for process in processes),
        tuple(process.reference_latency_ms for process in processes),
        tuple(() if undisturbed else process.reference_lost_ms for process in processes),
        alone=alone,
    )


@dataclass(frozen=True)
class Measurement:
    """All that was seen of one file, raw."""

    fingerprint: Fingerprint
    structure: str
    """Hash of the graph's ops and shapes; the clock sees nothing else."""
    processes: tuple[TimedProcess, ...]
    memory: Memory
    remarks: tuple[StoredRemark, ...] = ()
    """Why the figures deserve doubt; empty when they are stable."""
    before: DeviceState | None = None
    after: DeviceState | None = None
    calibration: LatencyPredictor | None = None
    """With one, the runs are this machine's and the figures that follow from them the device's, predicted."""

    @cached_property
    def samples(self) -> Samples:
        """The runs that count."""
        return select_samples(self.processes, self.fingerprint)

    @property
    def _blocks(self) -> statistics.Blocks:
        return self.samples.runs

    @property
    def _reference_blocks(self) -> statistics.Blocks:
        return self.samples.reference

    @cached_property
    def doubts(self) -> tuple[Remark, ...]:
        """The remarks that forbid a verdict about the latency."""
        return tuple(remark for remark in self.remarks if remark.spoils)

    @cached_property
    def p90_doubts(self) -> tuple[Remark, ...]:
        """The remarks that forbid a verdict about the 90th percentile: a run that was preempted may be one of the slowest."""
        if self.doubts or self.samples.tail_is_known:
            return self.doubts
        text = f"{100 * self.samples.preempted_share:.0f} % of the runs were preempted, and the p90 is about the slowest 10 %"
        return (Remark(RemarkKind.TAIL, text),)

    @cached_property
    def latency_p50_ms(self) -> Estimate:
        """Median latency of a process, averaged over processes, with its 95 % interval."""
        if self.calibration:
            return self.relative_p50.scaled(self.calibration.dense_p50_ms) if self.relative_p50 else Estimate.exact(0.0)
        return self.samples.allow_slowness(statistics.estimate(self._blocks, statistics.MEDIAN))

    @cached_property
    def latency_p90_ms(self) -> Estimate | None:
        """The early-stopping p90 of MLPerf, null below 64 runs."""
        if self.calibration:
            dense_ms = self.calibration.dense_p90_ms
            return self.relative_p90.scaled(dense_ms) if self.relative_p90 and dense_ms else None
        return statistics.p90_estimate(self._blocks)

    @cached_property
    def relative_p50(self) -> Estimate | None:
        """p50 over the reference's p50 of the same minutes, with its 95 % interval; null without a reference."""
        return self._on_the_device(statistics.ratio_estimate(self._blocks, self._reference_blocks, statistics.MEDIAN))

    @cached_property
    def relative_p90(self) -> Estimate | None:
        """p90 over the reference's p90 of the same minutes."""
        return self._on_the_device(statistics.ratio_estimate(self._blocks, self._reference_blocks, statistics.PERCENTILE_90))

    def _on_the_device(self, here: Estimate | None) -> Estimate | None:
        here = self.samples.allow(here)
        return self.calibration.relative(here) if here and self.calibration else here

    @cached_property
    def reference_p50_ms(self) -> Estimate | None:
        """p50 of the reference in the same minutes, its interval by bootstrap."""
        if self.calibration:
            return Estimate.exact(self.calibration.dense_p50_ms)
        if not all(self._reference_blocks):
            return None
        return self.samples.allow_slowness(statistics.estimate(self._reference_blocks, statistics.MEDIAN))

    @cached_property
    def reference_p90_ms(self) -> Estimate | None:
        """The reference's p90 in the same minutes."""
        if self.calibration:
            return Estimate.exact(self.calibration.dense_p90_ms) if self.calibration.dense_p90_ms else None
        return statistics.p90_estimate(self._reference_blocks) if all(self._reference_blocks) else None

    def joined(self, other: "Measurement") -> "Measurement":
        """Both measurements of the same file as one; raises ValueError when they are not of the same kind."""
        if (self.structure, self.fingerprint) != (other.structure, other.fingerprint):
            raise ValueError("measurements of different files or circumstances do not mix")
        peak = max(
            (m for m in (self.memory, other.memory) if m.peak_bytes is not None),
            key=lambda m: m.peak_bytes or 0,
            default=self.memory,
        )
        return replace(
            self,
            processes=self.processes + other.processes,
            memory=peak,
            remarks=tuple(sorted({*self.remarks, *other.remarks}, key=lambda remark: remark.text)),
            after=other.after,
        )
