"""Which machine serves which step of the walk: where the search measures, what it may offer there, where the end is judged."""

import contextlib
from collections.abc import Iterator

from pipeline.core.alignment import Alignment
from pipeline.core.candidate import Candidate
from pipeline.core.latency_predictor import read_predictor
from pipeline.core.profile import Profile
from pipeline.core.progress import Callback
from pipeline.core.run import Run
from pipeline.errors import ProbeError
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.probe.cached import cache_folder
from pipeline.probe.interface import Probe
from pipeline.search.problem import SearchSpace
from pipeline.stages.evaluate import Evaluator
from pipeline.stages.job import Job
from pipeline.stages.prepare import start_local, start_probe
from pipeline.stages.search_space import search_space
from pipeline.stages.width_sweep import find_alignment

__all__ = ["aligned_space", "final_probe", "search_probe"]


@contextlib.contextmanager
def search_probe(job: Job, profile: Profile, builder: PrunedModelBuilder, callback: Callback) -> Iterator[Probe]:
    """The device; or this machine in its stead, where the profile names no host or the job has a calibration."""
    if job.calibration and not job.dry_run:
        probe = start_local(profile, builder, callback.notice, read_predictor(job.calibration))
    else:
        probe = start_probe(profile, builder, callback.notice, dry_run=job.dry_run)
    with contextlib.closing(probe):
        yield probe


def aligned_space(
    probe: Probe, builder: PrunedModelBuilder, profile: Profile, run: Run, seed: int, callback: Callback
) -> tuple[SearchSpace, Alignment | None]:
    """The widths on offer: in the profile's steps, or in those that the device was found to be fast at."""
    step = profile.runtime.channel_step
    if step != "measured":
        return search_space(builder, int(step)), None
    callback.phase("align", f"which widths are fast, {probe.fingerprint.stamp}")
    with run.phase("align"):
        found = find_alignment(
            probe, builder.module, builder.space, builder.example, run.alignment, cache_folder(), seed, callback
        )
    return search_space(builder, found.step, found), found


@contextlib.contextmanager
def final_probe(
    job: Job, profile: Profile, builder: PrunedModelBuilder, probe: Probe, evaluator: Evaluator, callback: Callback
) -> Iterator[tuple[Probe, Candidate]]:
    """Where the shipped file is measured, and the dense network measured there. After a search on predictions that is the
    device, where it can be reached; where it cannot, latencies stay predicted, and no verdict on them is 'within'.
    """
    if job.calibration is None or job.dry_run:
        yield probe, evaluator.dense
        return
    try:
        device = start_probe(profile, builder, callback.notice, dry_run=False)
    except ProbeError as problem:
        notice = f"the device was not reached for the last measurement, so latencies are predicted and not decided ({problem})"
        evaluator.notices.append(notice)
        callback.notice(notice)
        yield probe, evaluator.dense
        return
    with contextlib.closing(device):
        yield device, evaluator.dense_on(device)
