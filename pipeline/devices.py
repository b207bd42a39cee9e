"""Which machine serves which step of the walk: where the search measures, what it may offer there, where the end is judged."""

import contextlib
from collections.abc import Iterator

from pipeline.alignment import Alignment
from pipeline.calibrate import read_calibration
from pipeline.candidate import Candidate
from pipeline.errors import ProbeError
from pipeline.evaluate import Evaluator
from pipeline.graph.drafts import Drafts
from pipeline.job import Job
from pipeline.offer import search_space
from pipeline.prepare import start_local, start_probe
from pipeline.probe.base import Probe
from pipeline.probe.cached import cache_folder
from pipeline.profile import Profile
from pipeline.run import Run
from pipeline.search.problem import SearchSpace
from pipeline.sweep import find_alignment
from pipeline.watch import Watcher

__all__ = ["aligned_space", "final_probe", "search_probe"]


@contextlib.contextmanager
def search_probe(job: Job, profile: Profile, drafts: Drafts, watcher: Watcher) -> Iterator[Probe]:
    """The device; or this machine in its stead, where the profile names no host or the job has a calibration."""
    if job.calibration and not job.dry_run:
        probe = start_local(profile, drafts, watcher.notice, read_calibration(job.calibration))
    else:
        probe = start_probe(profile, drafts, watcher.notice, dry_run=job.dry_run)
    with contextlib.closing(probe):
        yield probe


def aligned_space(
    probe: Probe, drafts: Drafts, profile: Profile, run: Run, seed: int, watcher: Watcher
) -> tuple[SearchSpace, Alignment | None]:
    """The widths on offer: in the profile's steps, or in those that the device was found to be fast at."""
    step = profile.runtime.channel_step
    if step != "measured":
        return search_space(drafts, int(step)), None
    watcher.phase("align", f"which widths are fast, {probe.fingerprint.stamp}")
    with run.phase("align"):
        found = find_alignment(probe, drafts.module, drafts.space, drafts.example, run.alignment, cache_folder(), seed, watcher)
    return search_space(drafts, found.step, found), found


@contextlib.contextmanager
def final_probe(
    job: Job, profile: Profile, drafts: Drafts, probe: Probe, evaluator: Evaluator, watcher: Watcher
) -> Iterator[tuple[Probe, Candidate]]:
    """Where the shipped file is measured, and the dense network measured there. After a search on predictions that is the
    device, where it can be reached; where it cannot, latencies stay predicted, and no verdict on them is 'within'.
    """
    if job.calibration is None or job.dry_run:
        yield probe, evaluator.dense
        return
    try:
        device = start_probe(profile, drafts, watcher.notice, dry_run=False)
    except ProbeError as problem:
        notice = f"the device was not reached for the last measurement, so latencies are predicted and not decided ({problem})"
        evaluator.notices.append(notice)
        watcher.notice(notice)
        yield probe, evaluator.dense
        return
    with contextlib.closing(device):
        yield device, evaluator.dense_on(device)
