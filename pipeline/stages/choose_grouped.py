"""Choose grouped: measure whether grouped layers run faster with whole groups removed, or with channels removed evenly."""

from dataclasses import replace
from pathlib import Path

from pipeline.core.measurement import Failure, Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.progress import Progress, no_progress
from pipeline.core.run import Run
from pipeline.errors import NothingToPrune
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.stages.context import RunContext, open_stage
from pipeline.stages.job import Job
from pipeline.stages.not_prunable import not_prunable
from pipeline.stages.prepare import LoadedModel, start_building
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.probes import search_probe
from pipeline.stages.shared_device import SharedDevice

__all__ = ["choose_grouped", "dense_structure", "faster_grouped", "known_grouped", "whole_groups"]


def known_grouped(run: Run) -> Grouped:
    """What an earlier process of this run chose; "evenly" if there is no choice yet."""
    return "whole" if (run.facts("grouped") or {}).get("removed") == "whole" else "evenly"


def choose_grouped(job: Job, loaded: LoadedModel, context: RunContext, device: SharedDevice) -> RunContext:
    """Return the context whose builder removes channels of grouped convolutions and GroupNorm in the faster way.

    Both ways are measured with half of the channels of these layers, once per run. The run is bound to the result. A network
    without such layers, and a run of an older version that has trials, is left as it is. Raises ProbeError and its subclasses.
    """
    run, builder = context.run, context.builder
    if run.facts("grouped") is not None or not builder.has_grouped_layers:
        return context
    if run.trials:
        run.bind("grouped", {"removed": "evenly"})  # it raises an error if the line with another choice is damaged
        return context
    with open_stage(run, context.callback, "groups", "find out how grouped layers are pruned faster"):
        whole = whole_groups(job, loaded, builder, run.dense_graph, device, context.callback.progress)
        choice: Grouped = "evenly"
        if whole is not None:
            with search_probe(job, context, device) as probe:
                choice, text = faster_grouped(probe, builder, whole, context.profile.probe.final_processes)
            run.record_choice(text)
            context.callback.say(text)
        run.bind("grouped", {"removed": choice})
        if whole is None or choice == "evenly":
            return context
        for text in (whole.proof, *not_prunable(whole.space)):
            context.callback.say(text)
        return replace(context, builder=whole)


def whole_groups(
    job: Job,
    loaded: LoadedModel,
    evenly: PrunedModelBuilder,
    dense_path: Path,
    device: SharedDevice,
    progress: Progress = no_progress,
) -> PrunedModelBuilder | None:
    """The builder that removes whole groups of the network of `evenly`; None if no group of a grouped layer can be removed."""
    if not evenly.has_grouped_layers:
        return None
    try:
        whole = start_building(job, loaded, dense_path, device, progress, "whole")
    except NothingToPrune:
        return None
    if not whole.in_groups:
        return None
    if job.calibration and dense_structure(whole) != dense_structure(evenly):
        return None
    return whole


def faster_grouped(probe: Probe, evenly: PrunedModelBuilder, whole: PrunedModelBuilder, processes: int) -> tuple[Grouped, str]:
    """The faster way and a sentence with both figures. If the intervals overlap, it is "evenly", because its plans are finer."""
    options = MeasurementOptions(processes, memory=False)
    one, other = (probe.measure(graph_of(builder.make(_half(builder))), options) for builder in (evenly, whole))
    if isinstance(one, Failure) or isinstance(other, Failure):
        failure = one if isinstance(one, Failure) else other
        reason = f"{failure.kind}: {failure.detail}" if isinstance(failure, Failure) else ""
        return "evenly", f"grouped layers could not be compared ({reason}); channels are removed evenly from each group"
    figures = (
        f"grouped layers: removing whole groups takes {other.latency_p50_ms.value:.3g} ms, removing channels evenly from each "
        f"group {one.latency_p50_ms.value:.3g} ms"
    )
    if _surely_faster(other, one):
        return "whole", f"{figures}; whole groups are removed"
    doubt = "" if _surely_faster(one, other) else "it is not certain which is faster, so "
    return "evenly", f"{figures}; {doubt}channels are removed evenly"


def _surely_faster(one: Measurement, other: Measurement) -> bool:
    """Whether the interval of `one` lies below that of `other`. Both are relative to the dense network, timed in turn with it."""
    if one.doubts or other.doubts:
        return False
    if one.relative_p50 and other.relative_p50:
        return one.relative_p50.high < other.relative_p50.low
    return one.latency_p50_ms.high < other.latency_p50_ms.low


def _half(builder: PrunedModelBuilder) -> ChannelPlan:
    """Half of the channels that pass through grouped layers, and all others."""
    groups = builder.space.groups
    return ChannelPlan(
        tuple(
            (group.name, max(1, group.channels // 2) if group.name in builder.in_groups else group.channels) for group in groups
        )
    )


def dense_structure(builder: PrunedModelBuilder) -> str:
    """The structure of the dense network. A calibration is valid for one."""
    return builder.make(builder.space.dense()).structure
