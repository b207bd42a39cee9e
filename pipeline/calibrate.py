"""Calibrate: measure a handful of plans on the device and here, so that a later search needs the board only at its end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.calibration import Calibration, Point
from pipeline.errors import ProbeError, ProfileError
from pipeline.files import write_atomically
from pipeline.foreign import JSON_LIMIT_BYTES, read_foreign
from pipeline.graph.drafts import Draft
from pipeline.handover import graph_of
from pipeline.job import Job
from pipeline.measurement import Measurement
from pipeline.offer import search_space
from pipeline.plan import ChannelPlan
from pipeline.prepare import draft_subject, load_subject, start_local, start_probe
from pipeline.probe.base import Effort, Probe
from pipeline.profile import load_profile
from pipeline.scratch import scratch_folder
from pipeline.search.problem import SearchSpace
from pipeline.watch import Watcher

__all__ = ["calibrate", "read_calibration"]

_CALIBRATION = TypeAdapter(Calibration)


def calibrate(job: Job, plans: int, path: Path, watcher: Watcher) -> Calibration:
    """Measure the dense network of `job`, its thinnest plan and `plans` others on the device and on this machine; write the map.

    Raises ProfileError when the profile names no device, ProbeError and its kin when one of the two cannot measure.
    """
    profile = load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands)
    if profile.device.host is None:
        raise ProfileError(f"{job.target}: device.host is not set, so there is no device to compare with; set it")
    watcher.phase("load", f"{job.model}, {job.data}")
    subject = load_subject(job, profile)
    watcher.phase("analyse", "export once, find the groups, prove the slice")
    with scratch_folder("calibrate") as folder:
        drafts = draft_subject(job, profile, subject, folder / "dense.onnx", watcher.notice)
    step = 4 if profile.runtime.channel_step == "measured" else int(profile.runtime.channel_step)
    chosen = list(_plans(search_space(drafts, step), plans, job.seed))
    made = [drafts.make(plan) for plan in chosen]
    with (
        contextlib.closing(start_probe(profile, drafts, watcher.notice, dry_run=job.dry_run)) as device,
        contextlib.closing(start_local(profile, drafts, watcher.notice)) as here,
    ):
        watcher.phase("measure", f"{len(made)} plans, on {profile.device.host} and here")
        pairs, processes = [], profile.probe.final_processes
        for number, draft in enumerate(made, start=1):
            there, local = _measured(device, draft, processes), _measured(here, draft, processes)
            pairs.append((there, local))
            watcher.say(
                f"{number}/{len(made)}: device {there.latency_p50_ms.value:.3f} ms, here {local.latency_p50_ms.value:.3f} ms"
            )
        dense = pairs[0][0]
        points = [
            Point(local.relative_p50.value, there.relative_p50.value)
            for there, local in pairs
            if there.relative_p50 and local.relative_p50
        ]
        found = Calibration(
            host=here.fingerprint.facts,
            device=device.fingerprint.facts,
            network=made[0].structure,
            dense_p50_ms=dense.latency_p50_ms.value,
            dense_p90_ms=dense.latency_p90_ms.value if dense.latency_p90_ms else None,
            points=tuple(points),
        )
    write_atomically(path, _CALIBRATION.dump_json(found, indent=1))
    return found


def read_calibration(path: Path) -> Calibration:
    """What `calibrate` wrote. Raises ProbeError."""
    try:
        return _CALIBRATION.validate_json(read_foreign(path, JSON_LIMIT_BYTES))
    except OSError as problem:
        raise ProbeError(f"{path}: cannot be read ({problem.strerror}); make it with: compress calibrate") from None
    except ValidationError:
        raise ProbeError(f"{path}: not a calibration; make it with: compress calibrate") from None


def _plans(space: SearchSpace, count: int, seed: int) -> Iterator[ChannelPlan]:
    """Dense, thinnest, and others spread over what lies between."""
    yield space.dense()
    yield space.thinnest()
    generator = np.random.default_rng(seed)
    for level in np.linspace(0.15, 0.85, count):
        yield space.plan(np.clip(generator.normal(level, 0.15, len(space.choices)), 0, 1).tolist())


def _measured(probe: Probe, draft: Draft, processes: int) -> Measurement:
    found = probe.measure(graph_of(draft), Effort(processes, memory=False))
    if not isinstance(found, Measurement):
        raise ProbeError(f"a plan cannot be measured: {found.kind}: {found.detail}")
    return found
