"""Measurement: the raw observations of one file, and the figures that are derived from them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pipeline.core import statistics
from pipeline.core.device_state import DeviceState
from pipeline.core.fingerprint import Fingerprint, Mode
from pipeline.core.latency_predictor import LatencyPredictor
from pipeline.core.pooled import Pooled, highest, pooled
from pipeline.core.remark import Remark, RemarkKind, StoredRemark
from pipeline.core.samples import Samples, select
from pipeline.core.statistics import Estimate

__all__ = ["Failure", "FailureKind", "Fingerprint", "Measurement", "Memory", "Mode", "TimedProcess", "pool_of", "select_samples"]

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
    board: str = ""
    """Address of the board, if it belongs to a pool."""
    others: tuple["Measurement", ...] = ()
    """The same file on other boards of a pool. Derived figures are then those of all boards."""
    every_board: bool = False
    """Whether a figure must be within its limit on every board, and not only in the mean."""

    @cached_property
    def boards(self) -> tuple["Measurement", ...]:
        """One measurement per board. If at least two are without doubts, only those."""
        if not self.others:
            return (self,)
        every = (replace(self, others=()), *self.others)
        clean = tuple(each for each in every if not each.doubts)
        return clean if len(clean) >= 2 else every

    @cached_property
    def pooled_p50(self) -> Pooled | None:
        """The relative p50 over all boards, and how far boards differ; null without a reference."""
        ratios = [board.relative_p50 for board in self.boards]
        known = [ratio for ratio in ratios if ratio is not None]
        return pooled(known) if len(known) == len(ratios) else None

    def _over_boards(self, figures: list[Estimate | None], *, ratios: bool) -> Estimate | None:
        """The figure of a pool. Ratios have a mean over boards; a time is that of the slowest board."""
        known = [figure for figure in figures if figure is not None]
        if len(known) < len(figures):
            return None
        return pooled(known).ratio if ratios and not self.every_board else highest(known)

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
        if self.others:
            return tuple(dict.fromkeys(remark for board in self.boards for remark in board.doubts))
        return tuple(remark for remark in self.remarks if remark.forbids_verdict)

    @cached_property
    def p90_doubts(self) -> tuple[Remark, ...]:
        """The remarks that forbid a verdict on the 90th percentile: a preempted run may be one of the slowest."""
        if self.others:
            return tuple(dict.fromkeys(remark for board in self.boards for remark in board.p90_doubts))
        if self.doubts or self.samples.tail_is_known:
            return self.doubts
        text = f"{100 * self.samples.preempted_share:.0f} % of the runs were preempted, and the p90 is about the slowest 10 %"
        return (Remark(RemarkKind.TAIL, text),)

    @cached_property
    def latency_p50_ms(self) -> Estimate:
        """Median latency of a process, averaged over processes, with its 95 % interval. Of a pool, on the slowest board."""
        if self.others:
            return highest([board.latency_p50_ms for board in self.boards])
        if self.calibration:
            return self.relative_p50.scaled(self.calibration.dense_p50_ms) if self.relative_p50 else Estimate.exact(0.0)
        return self.samples.allow_slowness(statistics.estimate(self._blocks, statistics.MEDIAN))

    @cached_property
    def latency_p90_ms(self) -> Estimate | None:
        """MLPerf's early-stopping estimate of the p90; null below 64 runs. Of a pool, on the slowest board."""
        if self.others:
            return self._over_boards([board.latency_p90_ms for board in self.boards], ratios=False)
        if self.calibration:
            dense_ms = self.calibration.dense_p90_ms
            return self.relative_p90.scaled(dense_ms) if self.relative_p90 and dense_ms else None
        return statistics.p90_estimate(self._blocks)

    @cached_property
    def relative_p50(self) -> Estimate | None:
        """p50 divided by the reference's p50 of the same minutes, with its 95 % interval; null without a reference.

        Of a pool, each board is compared with its own reference; see `pipeline.core.pooled`.
        """
        if self.others:
            return self._over_boards([board.relative_p50 for board in self.boards], ratios=True)
        return self._on_the_device(statistics.ratio_estimate(self._blocks, self._reference_blocks, statistics.MEDIAN))

    @cached_property
    def relative_p90(self) -> Estimate | None:
        """p90 divided by the reference's p90 of the same minutes."""
        if self.others:
            return self._over_boards([board.relative_p90 for board in self.boards], ratios=True)
        return self._on_the_device(statistics.ratio_estimate(self._blocks, self._reference_blocks, statistics.PERCENTILE_90))

    def _on_the_device(self, local: Estimate | None) -> Estimate | None:
        local = self.samples.allow(statistics.allow_drift(local) if local else None)
        return self.calibration.relative(local) if local and self.calibration else local

    @cached_property
    def reference_p50_ms(self) -> Estimate | None:
        """p50 of the reference in the same minutes, with a bootstrap interval. Of a pool, on the slowest board."""
        if self.others:
            return self._over_boards([board.reference_p50_ms for board in self.boards], ratios=False)
        if self.calibration:
            return Estimate.exact(self.calibration.dense_p50_ms)
        if not all(self._reference_blocks):
            return None
        return self.samples.allow_slowness(statistics.estimate(self._reference_blocks, statistics.MEDIAN))

    @cached_property
    def reference_p90_ms(self) -> Estimate | None:
        """p90 of the reference in the same minutes. Of a pool, on the slowest board."""
        if self.others:
            return self._over_boards([board.reference_p90_ms for board in self.boards], ratios=False)
        if self.calibration:
            return Estimate.exact(self.calibration.dense_p90_ms) if self.calibration.dense_p90_ms else None
        return statistics.p90_estimate(self._reference_blocks) if all(self._reference_blocks) else None

    def joined(self, other: "Measurement") -> "Measurement":
        """Join two measurements of the same file. Raises ValueError when their structures or fingerprints differ."""
        if self.others or other.others:
            return self._joined_pools(other)
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

    def _joined_pools(self, other: "Measurement") -> "Measurement":
        """Join the measurements of each board. A board that is missing in one of the two has those of the other."""
        mine, theirs = ({each.board: each for each in (replace(pool, others=()), *pool.others)} for pool in (self, other))
        every = [each.joined(theirs[board]) if board in theirs else each for board, each in mine.items()]
        every += [each for board, each in theirs.items() if board not in mine]
        return pool_of(every, every_board=self.every_board)


def pool_of(boards: Sequence[Measurement], *, every_board: bool) -> Measurement:
    """The measurements of one file on several boards as one. Its memory is the largest. Raises ValueError for other files."""
    if len({board.structure for board in boards}) > 1:
        raise ValueError("measurements of different files cannot be pooled")
    memory = max((board.memory for board in boards), key=lambda memory: memory.peak_bytes or 0)
    return replace(boards[0], others=tuple(boards[1:]), every_board=every_board, memory=memory)
