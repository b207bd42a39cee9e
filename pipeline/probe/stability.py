"""Stability: find reasons to doubt a measurement."""

from collections.abc import Iterator

from pipeline.core import statistics
from pipeline.core.device_state import DeviceState, stopped_by_quota, throttled
from pipeline.core.measurement import Fingerprint, TimedProcess, select_samples
from pipeline.core.remark import Remark, RemarkKind

__all__ = ["remarks_on"]

STOLEN_LIMIT, STOLEN_TICKS_MS = 0.02, 30.0
"""Largest share of stolen time on the cores, and the least stolen time that a clock with ticks of 10 ms can show."""


def remarks_on(
    processes: tuple[TimedProcess, ...], fingerprint: Fingerprint, noise_limit: float, before: DeviceState, after: DeviceState
) -> tuple[Remark, ...]:
    """Return the reasons to doubt the runs, the most serious first; empty when there are none."""
    return tuple(_on_the_machine(processes, fingerprint, before, after)) + tuple(_on_runs(processes, fingerprint, noise_limit))


def _on_the_machine(
    processes: tuple[TimedProcess, ...], fingerprint: Fingerprint, before: DeviceState, after: DeviceState
) -> Iterator[Remark]:
    slowed = throttled(before, after)
    if slowed:
        yield Remark(RemarkKind.THROTTLED, f"throttled: {slowed}")
    stopped = stopped_by_quota(before, after)
    if stopped:
        yield Remark(RemarkKind.QUOTA, stopped)
    stolen_ms = sum(process.stolen_ms or 0.0 for process in processes)
    timed_ms = sum(process.timed_ms for process in processes) * fingerprint.threads
    if stolen_ms >= STOLEN_TICKS_MS and stolen_ms > STOLEN_LIMIT * timed_ms:
        share = 100 * stolen_ms / timed_ms if timed_ms else 100.0
        yield Remark(RemarkKind.STOLEN, f"a hypervisor ran other machines on the cores for {share:.0f} % of the time")


def _on_runs(processes: tuple[TimedProcess, ...], fingerprint: Fingerprint, noise_limit: float) -> Iterator[Remark]:
    if not processes:
        return
    samples = select_samples(processes, fingerprint)
    clean = f"{samples.clean} of {samples.total} runs were not preempted"
    if samples.method == "none":
        yield Remark(RemarkKind.PREEMPTED, f"only {clean}")
    noise = statistics.noise(samples.runs)
    if noise > noise_limit:
        yield Remark(
            RemarkKind.NOISY,
            f"noisy: the runs deviate from their median by {100 * noise:.0f} % (limit {100 * noise_limit:.0f} %)",
        )
    ratios = statistics.process_ratios(samples.runs, samples.reference)
    spread = statistics.disagreement(ratios)
    if spread > statistics.DISAGREEMENT:
        kind = RemarkKind.DISAGREEING if len(ratios) < statistics.FEW_PROCESSES else RemarkKind.NOISY
        yield Remark(kind, f"{len(ratios)} processes disagree by {100 * spread:.0f} %")
    if samples.shared and samples.method != "none":
        ways = {"clean runs": "the others were left out", "processor time": "the processor time of all runs was used"}
        yield Remark(RemarkKind.SHARED, f"only {clean}: {ways[samples.method]}, and intervals are widened for the other programs")
