"""Calibrate: measure a few plans on the device and on this machine, so that a later search needs the device only at its end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.core.latency_predictor import LatencyPredictor, Point, predictor_json
from pipeline.core.measurement import Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.core.progress import Callback
from pipeline.errors import ProbeError, ProfileError
from pipeline.graph.pruned_model import PrunedModel
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.search.problem import SearchSpace
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building, start_local, start_probe
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.search_space import search_space
from pipeline.system.files import write_atomically
from pipeline.system.scratch import scratch_folder

__all__ = ["calibrate"]


def calibrate(job: Job, plans: int, path: Path, callback: Callback) -> LatencyPredictor:
    """Measure the dense plan, the thinnest plan and `plans` others on the device and here, and write the latency predictor.

    Raises ProfileError when the profile names no device, and ProbeError or a subclass when one of the two cannot measure.
    """
    profile = load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands)
    if profile.device.host is None:
        raise ProfileError(f"{job.target}: device.host is not set, so there is no device to compare with; set it")
    callback.phase("load", f"{job.model}, {job.data}")
    loaded = load_model_and_task(job, profile)
    callback.phase("analyse", "export once, find the groups, prove the slice")
    with scratch_folder("calibrate") as folder:
        builder = start_building(job, profile, loaded, folder / "dense.onnx", callback.notice)
    step = 4 if profile.runtime.channel_step == "measured" else int(profile.runtime.channel_step)
    chosen = list(_plans(search_space(builder, step), plans, job.seed))
    made = [builder.make(plan) for plan in chosen]
    with (
        contextlib.closing(start_probe(profile, builder, callback.notice, dry_run=job.dry_run)) as device,
        contextlib.closing(start_local(profile, builder, callback.notice)) as here,
    ):
        callback.phase("measure", f"{len(made)} plans, on {profile.device.host} and here")
        pairs, processes = [], profile.probe.final_processes
        for number, pruned in enumerate(made, start=1):
            there, local = _measured(device, pruned, processes), _measured(here, pruned, processes)
            pairs.append((there, local))
            callback.say(
                f"{number}/{len(made)}: device {there.latency_p50_ms.value:.3f} ms, here {local.latency_p50_ms.value:.3f} ms"
            )
        dense = pairs[0][0]
        points = [
            Point(local.relative_p50.value, there.relative_p50.value)
            for there, local in pairs
            if there.relative_p50 and local.relative_p50
        ]
        found = LatencyPredictor(
            host=here.fingerprint.facts,
            device=device.fingerprint.facts,
            network=made[0].structure,
            dense_p50_ms=dense.latency_p50_ms.value,
            dense_p90_ms=dense.latency_p90_ms.value if dense.latency_p90_ms else None,
            points=tuple(points),
        )
    write_atomically(path, predictor_json(found))
    return found


def _plans(space: SearchSpace, count: int, seed: int) -> Iterator[ChannelPlan]:
    """Yield the dense plan, the thinnest plan, and others spread between them."""
    yield space.dense()
    yield space.thinnest()
    generator = np.random.default_rng(seed)
    for level in np.linspace(0.15, 0.85, count):
        yield space.plan(np.clip(generator.normal(level, 0.15, len(space.choices)), 0, 1).tolist())


def _measured(probe: Probe, pruned: PrunedModel, processes: int) -> Measurement:
    found = probe.measure(graph_of(pruned), MeasurementOptions(processes, memory=False))
    if not isinstance(found, Measurement):
        raise ProbeError(f"a plan cannot be measured: {found.kind}: {found.detail}")
    return found
