"""Inspection: what can be pruned in a network, what its layers cost, and how long a search will take, before anyone waits."""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.batch import arrays_in
from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.network_form import settle_form
from pipeline.core.plan import Group, NotPrunable
from pipeline.core.profile import Profile, available_cores, load_profile
from pipeline.core.progress import Callback
from pipeline.core.statistics import Estimate
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import ModelError
from pipeline.graph.labels.space import GraphSpace
from pipeline.graph.layer_facts import LayerFacts, layer_facts, times_by_layer
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder
from pipeline.graph.restrict import layers_of
from pipeline.graph.structure import load_graph
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.search.problem import Choice
from pipeline.stages.choose_grouped import faster_grouped, whole_groups
from pipeline.stages.job import Job
from pipeline.stages.onnx_model import is_onnx, onnx_source, read_onnx
from pipeline.stages.prepare import LoadedModel, load_model_and_task, start_building, start_probe
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.provider_check import not_measured
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import SharedDevice, share_device
from pipeline.system.scratch import scratch_folder
from pipeline.training.adapt_network import adapt
from pipeline.training.load import find_model, load_model
from pipeline.training.own_task import OwnTask

__all__ = ["BlockFacts", "GroupFacts", "Inspection", "PlanFacts", "inspect_network"]

USUAL_STEP = 4
"""Channel step where the profile asks to measure it, which takes minutes."""
USUAL_PROFILE = "local"
"""Without a target, it says only which file format to write."""

EVENLY_ASSUMED = (
    "grouped convolutions and GroupNorm are shown with the same channels removed from each group; a run also measures the "
    "removal of whole groups, and takes the faster way; with --target, it is measured here too"
)


@dataclass(frozen=True)
class GroupFacts:
    """A group of channels that can only be removed together."""

    name: str
    channels: int
    smallest: int
    """The smallest width that a search may choose."""
    layers: tuple[str, ...]
    macs_share: float
    """Share of the network's operations that is saved when only this group is at its smallest width."""
    params_share: float


@dataclass(frozen=True)
class BlockFacts:
    """A block that can be dropped as a whole."""

    name: str
    groups: tuple[str, ...]
    """The groups that exist only inside."""
    macs_share: float
    """Share of the network's operations that is saved without it."""
    params_share: float


@dataclass(frozen=True)
class PlanFacts:
    """The dense network or the thinnest plan."""

    params: int
    macs: int
    file_size_bytes: int
    latency_p50_ms: Estimate | None = None
    doubts: tuple[str, ...] = ()
    """Reasons to doubt the latency."""


@dataclass(frozen=True)
class Inspection:
    """Everything that is known before a run. Figures in milliseconds are there only with a target."""

    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    """One per input."""
    layers: tuple[LayerFacts, ...]
    groups: tuple[GroupFacts, ...]
    not_prunable: tuple[NotPrunable, ...]
    dense: PlanFacts
    thinnest: PlanFacts
    step: int
    """Widths are multiples of this many outputs."""
    others_ms: dict[str, float]
    """Milliseconds of everything that is not in a layer, by operator."""
    fingerprint: Fingerprint | None = None
    trial_s: float | None = None
    """Seconds of one trial: measuring and, with data, scoring."""
    scored: bool = False
    """Whether `trial_s` includes scoring."""
    trials: int = 0
    blocks: tuple[BlockFacts, ...] = ()
    """The blocks that can be dropped, if the job lets them be."""
    notices: tuple[str, ...] = ()

    @property
    def search_s(self) -> float | None:
        """Seconds of the whole search, without training."""
        return None if self.trial_s is None else self.trial_s * self.trials


def inspect_network(job: Job, callback: Callback, *, has_data: bool = True, shape: tuple[int, ...] = ()) -> Inspection:
    """Inspect the network of `job`. It is measured if the job has a target, and scored too if `has_data`.

    Without `has_data`, neither the data nor the task of the job are read. Random images of `shape`, (1, C, H, W), are used, or
    of the size that the network declares. Raises the errors of loading and analysing a network, and ProbeError or a subclass.
    """
    profile = load_profile(job.target or USUAL_PROFILE, allow_ssh_commands=job.allow_ssh_commands)
    if not job.target:
        job = replace(job, dry_run=True)  # no device is asked for anything
    callback.phase("load", f"{job.model}, {job.data_words if has_data else 'random images'}")
    loaded = load_model_and_task(job, profile) if has_data else _without_data(job, profile, shape)
    callback.phase("analyse", "find channel groups, check slicing")
    with share_device(profile, callback.notice) as device, scratch_folder("inspect") as folder:
        builder = start_building(job, loaded, folder / "dense.onnx", device, callback.progress)
        builder, notices = _with_faster_way(job, loaded, builder, folder / "dense.onnx", device, callback)
        callback.progress(0, 0, "counting what each group saves")
        found = _counted(job, loaded, builder, profile)
        found = replace(found, notices=(*found.notices, *notices))
        return _measured(found, builder, loaded, device, callback, has_data=has_data) if job.target else found


def _with_faster_way(
    job: Job, loaded: LoadedModel, builder: PrunedModelBuilder, dense_path: Path, device: SharedDevice, callback: Callback
) -> tuple[PrunedModelBuilder, tuple[str, ...]]:
    """The builder that removes channels of grouped layers in the faster way, as a run does, and what to say about it.

    Without a target nothing is measured, and the notice says what is assumed.
    """
    if not builder.has_grouped_layers:
        return builder, ()
    if not job.target:
        return builder, (EVENLY_ASSUMED,)
    whole = whole_groups(job, loaded, builder, dense_path, device, callback.progress)
    if whole is None:
        return builder, ()
    callback.phase("groups", "find out how grouped layers are pruned faster")
    with contextlib.closing(start_probe(device, builder, dry_run=False)) as probe:
        choice, text = faster_grouped(probe, builder, whole, device.profile.probe.final_processes)
    return whole if choice == "whole" else builder, (text,)


def _without_data(job: Job, profile: Profile, shape: tuple[int, ...]) -> LoadedModel:
    """The network with random images, which are enough for its structure. Its weights may be random too."""
    given = read_onnx(job, profile) if is_onnx(job.model) else None
    source = onnx_source(job.model, given) if given else find_model(job.model, job.model_args)
    notices = list(given.notices) if given else []
    module = load_model(replace(source, needs_weights=False), job.weights, None, notices.append)
    if given:
        samples: tuple[Tensor, ...] = tuple(_random(door.shape, door.type) for door in given.facts.doors)
    else:
        samples = (_random(shape or _declared_shape(job.model, source.preprocessing)),)
    inputs = samples[0] if len(samples) == 1 else samples
    task = OwnTask(inputs, evaluate=lambda module: 0.0, train=lambda module: module, description="random images")
    settle_form(module, task.inputs(1), job.model)
    notices += adapt(module, task.inputs(2))
    return LoadedModel(module, task, {}, tuple(notices), given=given)


def _random(shape: tuple[int, ...], kind: str = "float32") -> Tensor:
    """Two random images, or zeros of another type, which may be indices."""
    if kind != "float32":
        return torch.from_numpy(np.zeros((2, *shape[1:]), dtype=kind))
    return torch.rand((2, *shape[1:]), generator=torch.Generator().manual_seed(0))


def _declared_shape(model: str, declared: Preprocessing | None) -> tuple[int, ...]:
    if declared is None or declared.size is None:
        raise ModelError(f"{model}: the size of its images is not known; give --data, or --shape 1x3x224x224")
    return 1, declared.channels or 3, declared.size, declared.width or declared.size


def _counted(job: Job, loaded: LoadedModel, builder: PrunedModelBuilder, profile: Profile) -> Inspection:
    step = profile.runtime.channel_step
    step = USUAL_STEP if step == "measured" else int(step)
    space, labelled = search_space(builder, step), builder.network.deployed.labelled
    dense, thinnest = builder.make(builder.space.dense()), builder.make(space.thinnest())
    groups = {group.name: group for group in labelled.space.groups}
    return Inspection(
        model=job.model,
        input_shapes=tuple(tuple(array.shape) for array in arrays_in(builder.example)),
        layers=layer_facts(load_graph(dense.data), labelled, builder.network.places),
        groups=tuple(_group(choice, groups[choice.name], labelled) for choice in space.choices if not choice.is_block),
        blocks=tuple(
            BlockFacts(choice.name, choice.contents, choice.macs_share, choice.params_share)
            for choice in space.choices
            if choice.is_block
        ),
        not_prunable=builder.space.frozen,
        dense=_plan(dense),
        thinnest=_plan(thinnest),
        step=step,
        others_ms={},
        trials=job.trials,
        notices=loaded.notices,
    )


def _group(choice: Choice, group: Group, labelled: GraphSpace) -> GroupFacts:
    layers = layers_of(group, labelled)
    return GroupFacts(choice.name, choice.channels, choice.widths[0], layers, choice.macs_share, choice.params_share)


def _plan(pruned: PrunedModel) -> PlanFacts:
    return PlanFacts(pruned.params, pruned.macs, pruned.file_size_bytes)


def _measured(
    found: Inspection,
    builder: PrunedModelBuilder,
    loaded: LoadedModel,
    device: SharedDevice,
    callback: Callback,
    *,
    has_data: bool,
) -> Inspection:
    profile = device.profile
    dense = builder.make(builder.space.dense())
    thinnest = builder.make(search_space(builder, found.step).thinnest())
    with contextlib.closing(start_probe(device, builder, dry_run=False)) as probe:
        callback.phase("measure", f"the dense and the thinnest plan, {probe.fingerprint.stamp}")
        (whole, _), (thin, thin_s) = (_timed(probe, pruned, profile.probe.processes) for pruned in (dense, thinnest))
        busy, fingerprint = set(probe.busy_cores), whole.fingerprint
    scored_s = None
    if has_data:
        callback.phase("score", "the dense network")
        started = time.monotonic()
        loaded.task.score(dense.module)
        scored_s = time.monotonic() - started
    beside = bool(set(available_cores()) - busy)
    trial_s = thin_s if scored_s is None else max(thin_s, scored_s) if beside else thin_s + scored_s
    found = replace(
        found,
        dense=_with_latency(found.dense, whole),
        thinnest=_with_latency(found.thinnest, thin),
        fingerprint=fingerprint,
        trial_s=trial_s,
        scored=scored_s is not None,
    )
    callback.phase("time", "each layer")
    layers, others = times_by_layer(found.layers, device.node_times(dense, builder), load_graph(dense.data))
    return replace(found, layers=layers, others_ms=others)


def _timed(probe: Probe, pruned: PrunedModel, processes: int) -> tuple[Measurement, float]:
    """The measurement, and the seconds that it took."""
    started = time.monotonic()
    measured = probe.measure(graph_of(pruned), MeasurementOptions(processes, memory=False))
    if isinstance(measured, Failure):
        raise not_measured("the network", measured)
    return measured, time.monotonic() - started


def _with_latency(plan: PlanFacts, measured: Measurement) -> PlanFacts:
    return replace(plan, latency_p50_ms=measured.latency_p50_ms, doubts=tuple(remark.text for remark in measured.doubts))
