"""Probes: which machine the search measures on, which widths it may choose from, and where the shipped file is measured."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.core.alignment import Alignment
from pipeline.core.candidate import Candidate
from pipeline.core.latency_predictor import LatencyPredictor, read_predictor
from pipeline.errors import ProbeError
from pipeline.probe.cached import cache_folder
from pipeline.probe.interface import Probe
from pipeline.search.problem import SearchSpace
from pipeline.stages.context import RunContext, open_stage
from pipeline.stages.job import Job
from pipeline.stages.measure_plans import measure_dense_with
from pipeline.stages.prepare import start_local, start_probe
from pipeline.stages.provider_check import check_provider_runs_all
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import SharedDevice
from pipeline.stages.width_sweep import find_alignment

__all__ = ["FinalProbe", "aligned_space", "final_probe", "refuse_without_blocks", "search_probe"]


@dataclass(frozen=True)
class FinalProbe:
    """The probe that measures the shipped file."""

    probe: Probe
    dense: Candidate
    """The dense network, measured by this probe."""


@contextlib.contextmanager
def search_probe(job: Job, context: RunContext, device: SharedDevice) -> Iterator[Probe]:
    """The device's probe, or this machine's if the profile names no host or the job has a calibration."""
    profile, builder, notify = context.profile, context.builder, context.callback.notice
    if job.calibration and not job.dry_run:
        predictor = read_predictor(job.calibration)
        refuse_without_blocks(predictor, job)
        if predictor.doubts:
            first, more = predictor.doubts[0], len(predictor.doubts) - 1
            context.notices.add(
                f"{job.calibration}: made from doubtful measurements, so its predictions may be off ({first}"
                f"{f'; and {more} more' if more else ''}); calibrate again: compress calibrate"
            )
        probe = start_local(profile, builder, notify, predictor)
    else:
        probe = start_probe(device, builder, dry_run=job.dry_run)
    with contextlib.closing(probe):
        if not job.dry_run and not job.calibration and (notice := check_provider_runs_all(device, builder)):
            context.notices.add(notice)
        yield probe


def refuse_without_blocks(predictor: LatencyPredictor, job: Job) -> None:
    """Raise ProbeError if the job may drop blocks, and the predictor was fitted to networks with all of their blocks only.

    Latencies of networks with fewer layers may lie on another line.
    """
    if job.depth != "off" and not predictor.depth:
        raise ProbeError(
            f"{job.calibration}: no network without some of its blocks was measured for it, so its predictions are not valid "
            "with --depth auto; calibrate again: compress calibrate --depth auto"
        )


def aligned_space(context: RunContext, probe: Probe, seed: int) -> tuple[SearchSpace, Alignment | None]:
    """The widths to choose from: in the profile's steps, or in the steps that the device computes fast."""
    run, builder, callback = context.run, context.builder, context.callback
    step = context.profile.runtime.channel_step
    if step != "measured":
        return search_space(builder, int(step)), None
    with (
        open_stage(run, callback, "align", f"find which widths are fast, {probe.fingerprint.stamp}"),
        run.derived(run.alignment, json.loads, callback.notice),
    ):
        found = find_alignment(probe, builder, run.alignment, cache_folder(), seed, callback)
    return search_space(builder, found.step, found), found


@contextlib.contextmanager
def final_probe(job: Job, context: RunContext, device: SharedDevice, probe: Probe, dense: Candidate) -> Iterator[FinalProbe]:
    """After a search with predicted latencies, measure the shipped file on the device, if it can be reached.

    If it cannot, latencies stay predicted, and no verdict on them is 'within'. After any other search, `probe` is used.
    """
    if job.calibration is None or job.dry_run:
        yield FinalProbe(probe, dense)
        return
    try:
        final = start_probe(device, context.builder, dry_run=False)
    except ProbeError as problem:
        context.notices.add(
            "the device could not be reached for the final measurement, so latencies are predictions and their verdict is "
            f"undecided ({problem})"
        )
        yield FinalProbe(probe, dense)
        return
    with contextlib.closing(final):
        yield FinalProbe(final, measure_dense_with(final, context, dense))
