"""Calibrate: measure a few plans on the device and on this machine, so that a later search needs the device only at its end."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.core.latency_predictor import LatencyPredictor, Point, predictor_json
from pipeline.core.measurement import Fingerprint, Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.core.progress import Callback
from pipeline.errors import ProfileError
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.search.problem import SearchSpace
from pipeline.search.random_search import without_random_blocks
from pipeline.stages.choose_grouped import dense_structure, whole_groups
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building, start_local, start_probe
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.provider_check import not_measured
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import share_device
from pipeline.system.files import write_atomically
from pipeline.system.scratch import scratch_folder

__all__ = ["Pair", "calibrate", "fitted", "plans_to_measure"]


@dataclass(frozen=True)
class Pair:
    """One plan, measured on both machines."""

    device: Measurement
    host: Measurement


def calibrate(job: Job, plans: int, path: Path, callback: Callback) -> LatencyPredictor:
    """Measure the dense plan, the thinnest plan and `plans` others on the device and here, and write the latency predictor.

    Raises ProfileError when the profile names no device, and ProbeError or a subclass when one of the two cannot measure.
    """
    profile = load_profile(job.target, allow_ssh_commands=job.allow_ssh_commands)
    if profile.device.host is None:
        raise ProfileError(f"{job.target}: device.host is not set, so there is no device to compare with; set it in the profile")
    callback.phase("load", f"{job.model}, {job.data_words}")
    loaded = load_model_and_task(job, profile)
    callback.phase("analyse", "export the network, find channel groups, check slicing")
    with share_device(profile, callback.notice) as device:
        with scratch_folder("calibrate") as folder:
            dense_path = folder / "dense.onnx"
            builder = start_building(job, loaded, dense_path, device, callback.progress)
            whole = whole_groups(job, loaded, builder, dense_path, device, callback.progress)
        step = 4 if profile.runtime.channel_step == "measured" else int(profile.runtime.channel_step)
        both = whole is not None and dense_structure(whole) == dense_structure(builder)
        made = models_to_measure((builder, whole) if whole and both else (builder,), step, plans, job.seed)
        if both:
            callback.say("every second plan removes whole groups of grouped layers, because a run may choose that")
        with (
            contextlib.closing(start_probe(device, builder, dry_run=job.dry_run)) as there,
            contextlib.closing(start_local(profile, builder, callback.notice)) as here,
        ):
            callback.phase("measure", f"{len(made)} plans, on {profile.device.host} and here")
            pairs = _measured_on_both(there, here, made, profile.probe.final_processes, callback)
            found = replace(fitted(pairs, here.fingerprint, there.fingerprint), depth=job.depth != "off")
    for doubt in found.doubts:
        callback.notice(doubt)
    write_atomically(path, predictor_json(found))
    return found


def fitted(pairs: Sequence[Pair], host: Fingerprint, device: Fingerprint) -> LatencyPredictor:
    """The predictor from `pairs`, of which the first is the dense network's.

    Doubtful measurements are used and listed in its `doubts`. A plan that was not timed against the dense network is left out,
    and listed too.
    """
    dense = pairs[0].device
    points, doubts = [], []
    for number, pair in enumerate(pairs, start=1):
        for where, measured in (("the device", pair.device), ("this machine", pair.host)):
            texts = "; ".join(remark.text for remark in measured.doubts)
            doubts += [f"plan {number} of {len(pairs)}, measured on {where}, is doubtful: {texts}"] if texts else []
        if pair.device.relative_p50 and pair.host.relative_p50:
            points.append(Point(pair.host.relative_p50.value, pair.device.relative_p50.value))
        else:
            doubts.append(f"plan {number} of {len(pairs)} is left out: it was not timed against the dense network")
    return LatencyPredictor(
        host=host.facts,
        device=device.facts,
        network=dense.structure,
        dense_p50_ms=dense.latency_p50_ms.value,
        dense_p90_ms=dense.latency_p90_ms.value if dense.latency_p90_ms else None,
        points=tuple(points),
        doubts=tuple(doubts),
    )


def _measured_on_both(
    device: Probe, host: Probe, made: Sequence[PrunedModel], processes: int, callback: Callback
) -> tuple[Pair, ...]:
    pairs = []
    for number, pruned in enumerate(made, start=1):
        pair = Pair(_measured(device, pruned, processes), _measured(host, pruned, processes))
        pairs.append(pair)
        there, here = pair.device.latency_p50_ms.value, pair.host.latency_p50_ms.value
        callback.say(f"{number}/{len(made)}: device {there:.3f} ms, here {here:.3f} ms")
        callback.progress(number, len(made), "plans measured on both")
    return tuple(pairs)


def models_to_measure(builders: Sequence[PrunedModelBuilder], step: int, count: int, seed: int) -> list[PrunedModel]:
    """The models of `plans_to_measure`. The builders, one for each way to prune grouped layers, take turns with the other plans,
    because a run chooses one of these ways.
    """
    given = [plans_to_measure(search_space(builder, step), count, seed) for builder in builders]
    return [
        builders[max(0, number - 2) % len(builders)].make(plans[max(0, number - 2) % len(builders)])
        for number, plans in enumerate(zip(*given, strict=True))
    ]


def plans_to_measure(space: SearchSpace, count: int, seed: int) -> Iterator[ChannelPlan]:
    """Yield the dense plan, the thinnest plan, and others spread between them. Some of their blocks are dropped at random."""
    yield space.dense()
    yield space.thinnest()
    generator = np.random.default_rng(seed)
    for level in np.linspace(0.15, 0.85, count):
        fractions = np.clip(generator.normal(level, 0.15, len(space.choices)), 0, 1)
        yield space.plan(without_random_blocks(space, fractions, generator).tolist())


def _measured(probe: Probe, pruned: PrunedModel, processes: int) -> Measurement:
    found = probe.measure(graph_of(pruned), MeasurementOptions(processes, memory=False))
    if not isinstance(found, Measurement):
        raise not_measured("a plan", found)
    return found
