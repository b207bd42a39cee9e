"""Samples: which timed runs say how fast a file is, and what each is worth; see docs/decisions/0019."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.core.statistics import Blocks, Estimate

__all__ = ["Method", "Samples", "is_clean", "select"]

Method = Literal["clock", "clean runs", "processor time", "none"]
"""How the runs are judged: all by the clock; only those that were not preempted; all by their processor time; or, with "none",
all by the clock although too few are clean, so that no verdict may rest on them."""

CLEAN_SHARE, CLEAN_MS = 0.01, 0.005
"""A run is clean when it lost no more than this share of itself, plus what reading the clocks takes."""
MIN_CLEAN = 16
"""Clean runs of each graph that each process needs; half of its runs where it has fewer than twice as many."""
SHARED_ABOVE = 0.10
"""Share of preempted runs above which other programs are held to disturb the clean runs too, through caches and memory."""
ALLOWANCE, PROCESSOR_ALLOWANCE = 0.05, 0.15
"""How far a ratio is trusted then, as a share of it, on either side of its interval: of clean runs, and of processor time, which
counts the caches that are filled again. See docs/benchmarks/probe.md."""
LEAST_SHARE = 1e-3
"""Of a run, that its processor time is taken to be at least; so a broken clock divides nothing by zero."""
TAIL_ABOVE = 0.05
"""Share of preempted runs above which the slowest tenth of the others is not taken for the device's."""


@dataclass(frozen=True)
class Samples:
    """The runs of one measurement, chosen and corrected."""

    runs: Blocks
    """Of the file; NaN where a run is no sample."""
    reference: Blocks
    """Of the reference; a process without one has no blocks."""
    method: Method
    clean: int
    """Clean runs of the file and the reference."""
    total: int
    preempted_share: float
    """Of the file's runs or the reference's, the larger one."""

    @property
    def shared(self) -> bool:
        """Whether other programs used the cores so much that even what was corrected is not exact."""
        return self.preempted_share > SHARED_ABOVE

    @property
    def tail_is_known(self) -> bool:
        """Whether a 90th percentile can be told."""
        return self.preempted_share <= TAIL_ABOVE

    @property
    def allowance(self) -> float:
        """What `allow` adds to each side of an interval, as a share of it."""
        return PROCESSOR_ALLOWANCE if self.method == "processor time" else ALLOWANCE

    def allow(self, ratio: Estimate | None) -> Estimate | None:
        """The ratio of two latencies with a wider interval, where the cores were shared."""
        if ratio is None or not self.shared:
            return ratio
        return Estimate(ratio.value, ratio.low / (1 + self.allowance), ratio.high * (1 + self.allowance))

    def allow_slowness(self, latency: Estimate) -> Estimate:
        """A latency with a wider interval below: sharing only makes runs longer."""
        return Estimate(latency.value, latency.low / (1 + self.allowance), latency.high) if self.shared else latency


def is_clean(run_ms: float, lost_ms: float) -> bool:
    """Whether a run had its cores to itself."""
    return lost_ms <= CLEAN_SHARE * run_ms + CLEAN_MS


def select(runs: Blocks, lost: Blocks, reference: Blocks, reference_lost: Blocks, *, alone: bool) -> Samples:
    """What of the timed runs counts. `lost` and `reference_lost` have the form of `runs` and `reference`, in ms, or are empty for
    each process where losses are not known. `alone`: one thread computes, so that its losses can be taken off exactly.
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
