"""Samples: selects and corrects the timed runs that show how fast a file is; see docs/decisions/0019."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.core.statistics import Blocks, Estimate

__all__ = ["Method", "Samples", "is_clean", "select"]

Method = Literal["clock", "clean runs", "processor time", "none"]
"""Evaluation of the runs: wall time of all runs; wall time of the runs that were not preempted; processor time of all runs; or,
for "none", wall time of all runs although too few are clean, so that no verdict can be based on them."""

CLEAN_SHARE, CLEAN_MS = 0.01, 0.005
"""A run is clean when it lost at most this share of itself, plus the time for reading the clocks."""
MIN_CLEAN = 16
"""Clean runs of each graph that each process needs; half of its runs if it has fewer than twice this number."""
SHARED_ABOVE = 0.10
"""Above this share of preempted runs, other programs are assumed to slow the clean runs too, through caches and memory."""
ALLOWANCE, PROCESSOR_ALLOWANCE = 0.05, 0.15
"""Relative widening of a ratio's interval on either side in that case: for clean runs, and for processor time, which includes
refilling the caches. See docs/benchmarks/probe.md."""
LEAST_SHARE = 1e-3
"""Smallest processor time of a run, as a share of the run, so that a broken clock causes no division by zero."""
TAIL_ABOVE = 0.05
"""Above this share of preempted runs, the slowest tenth of the other runs does not represent the device."""


@dataclass(frozen=True)
class Samples:
    """The selected and corrected runs of one measurement."""

    runs: Blocks
    """Runs of the file; NaN where a run is no sample."""
    reference: Blocks
    """Runs of the reference; a process without a reference has no blocks."""
    method: Method
    clean: int
    """Number of clean runs of the file and the reference."""
    total: int
    preempted_share: float
    """Share of preempted runs of the file or the reference, whichever is larger."""

    @property
    def shared(self) -> bool:
        """Whether other programs used the cores so much that even corrected figures are not exact."""
        return self.preempted_share > SHARED_ABOVE

    @property
    def tail_is_known(self) -> bool:
        """Whether a 90th percentile can be determined."""
        return self.preempted_share <= TAIL_ABOVE

    @property
    def allowance(self) -> float:
        """What `allow` adds to each side of an interval, as a share of the bound."""
        return PROCESSOR_ALLOWANCE if self.method == "processor time" else ALLOWANCE

    def allow(self, ratio: Estimate | None) -> Estimate | None:
        """Return the ratio of two latencies, with a wider interval where the cores were shared."""
        if ratio is None or not self.shared:
            return ratio
        return Estimate(ratio.value, ratio.low / (1 + self.allowance), ratio.high * (1 + self.allowance))

    def allow_slowness(self, latency: Estimate) -> Estimate:
        """Return a latency, with a smaller lower bound where the cores were shared, because sharing only makes runs longer."""
        return Estimate(latency.value, latency.low / (1 + self.allowance), latency.high) if self.shared else latency


def is_clean(run_ms: float, lost_ms: float) -> bool:
    """Whether a run had its cores to itself."""
    return lost_ms <= CLEAN_SHARE * run_ms + CLEAN_MS


def select(runs: Blocks, lost: Blocks, reference: Blocks, reference_lost: Blocks, *, alone: bool) -> Samples:
    """Select and correct the timed runs. `lost` and `reference_lost`, in ms, have the form of `runs` and `reference`; they are
    empty for each process whose losses are not known. `alone`: one thread computes, so its losses can be subtracted exactly.
    """
    pairs = [*zip(runs, lost, strict=True), *zip(reference, reference_lost, strict=True)]
    pairs = [pair for pair in pairs if pair[0]]
    total = sum(len(block) for blocks, _ in pairs for block in blocks)
    if any(not losses for _, losses in pairs):
        return Samples(runs, reference, "clock", total, total, 0.0)
    clean = [_clean_count(blocks, losses) for blocks, losses in pairs]
    counts = [sum(len(block) for block in blocks) for blocks, _ in pairs]
    preempted = max(
        _share(clean[: len(runs)], counts[: len(runs)]),
        _share(clean[len(runs) :], counts[len(runs) :]),
    )
    method: Method = "none"
    if sum(clean) == total:
        method = "clock"
    elif all(found >= min(MIN_CLEAN, math.ceil(count / 2)) for found, count in zip(clean, counts, strict=True)):
        method = "clean runs"
        runs, reference = _without_preempted(runs, lost), _without_preempted(reference, reference_lost)
    elif alone:
        method = "processor time"
        runs, reference = _processor_time(runs, lost), _processor_time(reference, reference_lost)
    return Samples(runs, reference, method, sum(clean), total, preempted)


def _share(clean: Sequence[int], counts: Sequence[int]) -> float:
    return 1 - sum(clean) / sum(counts) if sum(counts) else 0.0


def _clean_count(blocks: tuple[tuple[float, ...], ...], losses: tuple[tuple[float, ...], ...]) -> int:
    return sum(is_clean(run, lost) for pair in zip(blocks, losses, strict=True) for run, lost in zip(*pair, strict=True))


def _without_preempted(runs: Blocks, lost: Blocks) -> Blocks:
    return tuple(
        tuple(
            tuple(run if is_clean(run, loss) else np.nan for run, loss in zip(block, losses, strict=True))
            for block, losses in zip(process, process_lost, strict=True)
        )
        for process, process_lost in zip(runs, lost, strict=True)
    )


def _processor_time(runs: Blocks, lost: Blocks) -> Blocks:
    return tuple(
        tuple(
            tuple(
                run if is_clean(run, loss) else max(run - loss, LEAST_SHARE * run)
                for run, loss in zip(block, losses, strict=True)
            )
            for block, losses in zip(process, process_lost, strict=True)
        )
        for process, process_lost in zip(runs, lost, strict=True)
    )
