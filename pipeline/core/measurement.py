"""Measurement: the raw observations of one file, and the figures that are derived from them."""

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
    "fallback",
]


@dataclass(frozen=True)
class Failure:
    """The reason why a candidate has no figures. The search continues."""

    kind: FailureKind
    detail: str


@dataclass(frozen=True)
class Fingerprint:
    """Where and how a figure was measured. Figures with different fingerprints are never compared."""

    mode: Mode
    device: str
    """Name of the device in the profile."""
    machine: str
    """Processor that ran the file."""
    architecture: str
    onnxruntime: str
    threads: int
    """Threads that were used."""
    profile_threads: int
    """Threads that the profile asks for."""
    settings: tuple[tuple[str, str | int | bool], ...]
    """ONNX Runtime settings as they were passed: provider, optimisation level, spinning, arena and others."""
    identity: str = ""
    """Distinguishes machines of the same kind; empty for simulated machines."""
    system: str = ""
    """Kernel and its version."""
    wheel: str | None = None
    """Python, ABI and platform tags of the onnxruntime wheel; null where it has none."""
    error: float = 0.0
    """Relative error of a prediction; see `LatencyPredictor`."""

    @property
    def facts(self) -> dict[str, str]:
        """Everything that must be equal for figures to be compared, as plain text."""
        return {key: str(value) for key, value in vars(self).items() if key != "settings"} | {
            key: str(value) for key, value in self.settings
        }

    @property
    def stamp(self) -> str:
        """Label of every figure: 'device', or 'host-emulated, 2 of 4 threads'."""
        mode = f"predicted ± {100 * self.error:.1f} % from figures of this machine" if self.mode == "predicted" else self.mode
        if self.threads < self.profile_threads:
            return f"{mode}, {self.threads} of {self.profile_threads} threads"
        return mode


@dataclass(frozen=True)
class TimedProcess:
    """Timed runs of one fresh process, in alternating blocks of the file and the reference."""

    latency_ms: tuple[tuple[float, ...], ...]
    """(blocks, runs) in ms."""
    reference_latency_ms: tuple[tuple[float, ...], ...]
    """(blocks, runs) of the dense graph; each block was timed next to a block of the file."""
    session_creation_ms: float
    first_run_ms: float
    cpu_ms_per_run: float
    """Processor time of all threads, per timed run of the file."""
    preemptions: int | None
    """How often another program took the core; null where the system does not count this."""
    timed_ms: float
    """Wall time from the first warm-up run to the last timed run."""
    course: tuple[tuple[float, float | None], ...] = ()
    """For a sustained workload, at the end of each block: seconds since the start, temperature in degrees Celsius."""
    lost_ms: tuple[tuple[float, ...], ...] = ()
    """(blocks, runs): how long each run was ready but waiting for a core; empty where this is not known."""
    reference_lost_ms: tuple[tuple[float, ...], ...] = ()
    """The same for the runs of the dense graph."""
    foreign_ms: float | None = None
    """Time that other programs ran meanwhile, summed over the cores; null where the system does not report it."""
    stolen_ms: float | None = None
    """Time that a hypervisor ran other machines on the cores meanwhile; null where the system does not report it."""


@dataclass(frozen=True)
class Memory:
    """Resident memory (VmHWM) of a fresh process that only loads and runs the file; null where not available."""

    baseline_bytes: int | None
    """After importing the runtime, before loading the file."""
    session_bytes: int | None
    """After creating the session."""
    peak_bytes: int | None
    """Maximum until the end, including the baseline."""
    rss_bytes: int | None = None
    """At the end, counted exactly (smaps_rollup). The other values are the kernel's approximate counters."""


FOREIGN_SHARE, FOREIGN_MS = 0.05, 40.0
"""Tolerated share of the time on the cores, and the error of a 10 ms clock over several processes."""


def select_samples(processes: tuple[TimedProcess, ...], fingerprint: Fingerprint) -> Samples:
    """Select the runs of `processes` that are valid samples.

    With several threads, the system sometimes puts two of them on one core, so that they wait for each other. This is normal for
    the device. So losses of several threads count only where other programs used the cores.
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
    """The raw observations of one file."""

    fingerprint: Fingerprint
    structure: str
    """Hash of the graph's operators and shapes; the latency depends on nothing else."""
    processes: tuple[TimedProcess, ...]
    memory: Memory
    remarks: tuple[StoredRemark, ...] = ()
    """Reasons to doubt the figures; empty when they are stable."""
    before: DeviceState | None = None
    after: DeviceState | None = None
    calibration: LatencyPredictor | None = None
    """If it is set, the runs are this machine's, and the derived figures are predictions for the device."""

    @cached_property
    def samples(self) -> Samples:
        """The runs that are valid samples."""
        return select_samples(self.processes, self.fingerprint)

    @property
    def _blocks(self) -> statistics.Blocks:
        return self.samples.runs

    @property
    def _reference_blocks(self) -> statistics.Blocks:
        return self.samples.reference

    @cached_property
    def doubts(self) -> tuple[Remark, ...]:
        """The remarks that forbid a verdict on the latency."""
        return tuple(remark for remark in self.remarks if remark.forbids_verdict)

    @cached_property
    def p90_doubts(self) -> tuple[Remark, ...]:
        """The remarks that forbid a verdict on the 90th percentile: a preempted run may be one of the slowest."""
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
        """MLPerf's early-stopping estimate of the p90; null below 64 runs."""
        if self.calibration:
            dense_ms = self.calibration.dense_p90_ms
            return self.relative_p90.scaled(dense_ms) if self.relative_p90 and dense_ms else None
        return statistics.p90_estimate(self._blocks)

    @cached_property
    def relative_p50(self) -> Estimate | None:
        """p50 divided by the reference's p50 of the same minutes, with its 95 % interval; null without a reference."""
        return self._on_the_device(statistics.ratio_estimate(self._blocks, self._reference_blocks, statistics.MEDIAN))

    @cached_property
    def relative_p90(self) -> Estimate | None:
        """p90 divided by the reference's p90 of the same minutes."""
        return self._on_the_device(statistics.ratio_estimate(self._blocks, self._reference_blocks, statistics.PERCENTILE_90))

    def _on_the_device(self, local: Estimate | None) -> Estimate | None:
        local = self.samples.allow(statistics.allow_drift(local) if local else None)
        return self.calibration.relative(local) if local and self.calibration else local

    @cached_property
    def reference_p50_ms(self) -> Estimate | None:
        """p50 of the reference in the same minutes, with a bootstrap interval."""
        if self.calibration:
            return Estimate.exact(self.calibration.dense_p50_ms)
        if not all(self._reference_blocks):
            return None
        return self.samples.allow_slowness(statistics.estimate(self._reference_blocks, statistics.MEDIAN))

    @cached_property
    def reference_p90_ms(self) -> Estimate | None:
        """p90 of the reference in the same minutes."""
        if self.calibration:
            return Estimate.exact(self.calibration.dense_p90_ms) if self.calibration.dense_p90_ms else None
        return statistics.p90_estimate(self._reference_blocks) if all(self._reference_blocks) else None

    def joined(self, other: "Measurement") -> "Measurement":
        """Join two measurements of the same file. Raises ValueError when their structures or fingerprints differ."""
        if (self.structure, self.fingerprint) != (other.structure, other.fingerprint):
            raise ValueError("measurements of different files or conditions cannot be merged")
        peak = max(
            (m for m in (self.memory, other.memory) if m.peak_bytes is not None),
            key=lambda m: m.peak_bytes or 0,
            default=self.memory,
        )
        # several measurements are often disturbed in the same way: one remark of each kind says enough
        remarks = {remark.kind: remark for remark in (*self.remarks, *other.remarks)}
        return replace(
            self,
            processes=self.processes + other.processes,
            memory=peak,
            remarks=tuple(sorted(remarks.values(), key=lambda remark: remark.text)),
            after=other.after,
        )
