"""Build: export the trained network, prove the file, measure it again, test it once, and pack it with its evidence."""

import datetime
import functools
import html
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import nn

from pipeline.core.artifact import Artifact, PrecisionRow
from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.core.budget import worst_verdict
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure
from pipeline.core.paired_difference import paired_drop
from pipeline.core.plan import ChannelPlan, PruneSpace
from pipeline.core.profile import Precision
from pipeline.core.progress import Callback, begin_step
from pipeline.errors import ShipError, one_line
from pipeline.graph.export import stamp
from pipeline.graph.pruned_model import PrunedModel
from pipeline.graph.shrink import layer_groups_of
from pipeline.graph.structure import load_graph
from pipeline.graph.structure import structure as structure_of
from pipeline.packaging.board_summary import board_summary
from pipeline.packaging.budget_rows import budget_rows
from pipeline.packaging.ort import ort_files
from pipeline.packaging.pack import NETWORK_FILE, file_facts, pack, plan_json, weights_bytes
from pipeline.packaging.serving import GOLDEN_INPUTS, device_limits, serving_files
from pipeline.packaging.verify import PARITY_INPUTS, verified_file
from pipeline.stages.context import RunContext
from pipeline.stages.probes import FinalProbe
from pipeline.stages.sequential_measurement import measure_longer, measurement_s
from pipeline.stages.try_int8 import Quantised
from pipeline.system.files import sha256_bytes
from pipeline.system.units import format_duration
from pipeline.system.versions import installed_versions
from pipeline.training.finetune import Finetuned
from pipeline.training.scoring import OnnxModule

__all__ = ["Final", "final_file", "ship", "with_int8"]

ARTIFACT_FORMAT = 1
PACKAGES = ("edge-compress", "torch", "torchvision", "onnx", "onnxruntime", "onnxscript", "onnxsim", "numpy")


@dataclass(frozen=True)
class Final:
    """The file that ships, and what was proven about it."""

    pruned: PrunedModel
    proofs: tuple[str, ...]
    precision: Precision = "fp32"
    rows: tuple[PrecisionRow, ...] = ()
    """Dense and pruned, float32 and int8, if int8 was tried."""


def ship(
    context: RunContext,
    tuned: Finetuned,
    chosen: Candidate,
    final: Final,
    judge: FinalProbe,
    page: Callable[[Artifact], bytes],
) -> Artifact:
    """Measure and test the final file, and pack it with its evidence into `context.run.artifact`. `page` makes report.html.

    Raises ShipError if the file answers differently from the network, or if it can no longer be measured.
    """
    task, constraints = context.task, context.constraints
    provenance = context.provenance
    step = functools.partial(begin_step, context.callback.progress)
    dense, shipped = _judged(context, chosen, final, judge)
    files, proofs = _files(context, tuned, final, dense, shipped)
    rows, widths = tuple(budget_rows(constraints, dense, shipped, task.score_name)), dict(chosen.plan)
    network, space = context.builder.network, context.builder.space
    artifact = Artifact(
        format=ARTIFACT_FORMAT,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=provenance.command,
        job=provenance.job,
        profile=context.profile.model_dump(mode="json"),
        data=task.description,
        versions={"python": platform.python_version(), **installed_versions(PACKAGES)},
        files=file_facts(files),
        verdict=worst_verdict(row.verdict for row in rows if row.verdict),
        rows=rows,
        dense=dense,
        shipped=shipped,
        validation=_validation(context, tuned, chosen, final),
        proofs=proofs,
        notices=context.notices.texts,
        widths={group.name: (widths.get(group.name, 0), group.channels, group.bundle) for group in space.groups},
        frozen=space.frozen,
        phase_seconds=context.run.phase_seconds(),
        learning_rate=tuned.learning_rate,
        finetuned_epoch=tuned.epoch,
        precision=final.precision,
        precisions=final.rows,
        forecasts=context.run.forecasts,
        network=network.origin,
        network_reason=network.reason,
        blocks=_dropped_blocks(space, chosen.plan),
    )
    step("writing the report and the artifact")
    report, artifact = _reported(artifact, page, context.callback)
    artifact = replace(artifact, files={**artifact.files, **file_facts({"report.html": report})})
    pack(context.run.artifact, artifact, {**files, "report.html": report})
    return artifact


def _judged(context: RunContext, chosen: Candidate, final: Final, judge: FinalProbe) -> tuple[Candidate, Candidate]:
    """The dense network and the final file, both measured and tested.

    Raises ShipError if the file can no longer be measured.
    """
    builder, task, pruned = context.builder, context.task, final.pruned
    processes = context.profile.probe.final_processes
    once_s = measurement_s(context.profile.probe, context.run.find("uniform", 1))
    if once_s >= 1:
        context.callback.say(f"a measurement of the final file takes about {format_duration(once_s)}")
    measured = measure_longer(judge.probe, pruned, processes, context.constraints, judge.dense, context.callback)
    if isinstance(measured, Failure):
        raise ShipError(f"the final file could not be measured: {measured.kind}: {measured.detail}")
    if text := board_summary(measured):
        context.notices.add(text)
    step = functools.partial(begin_step, context.callback.progress)
    tested = (
        task.test(OnnxModule(builder.make(builder.space.dense()).data), step("testing the dense network")),
        task.test(OnnxModule(pruned.data), step("testing the final file")),
    )
    shipped = Candidate(
        plan=chosen.plan,
        params=pruned.params,
        macs=pruned.macs,
        file_size_bytes=pruned.file_size_bytes,
        structure=pruned.structure,
        measurement=measured,
        score=tested[1].value,
        drop=paired_drop(*tested),
    )
    return replace(judge.dense, score=tested[0].value), shipped


def _files(
    context: RunContext, tuned: Finetuned, final: Final, dense: Candidate, shipped: Candidate
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The artifact's files by name, without the report and the manifest, and all that was proven about them."""
    builder, task, profile, pruned = context.builder, context.task, context.profile, final.pruned
    proofs, provenance, plan = (builder.proof, *final.proofs), context.provenance, shipped.plan
    golden = _golden(pruned.data, task.inputs(GOLDEN_INPUTS))
    files = {
        "model.onnx": pruned.data,
        **serving_files(profile, *golden, device_limits(context.constraints, dense, shipped), final.precision),
        "weights.safetensors": weights_bytes(tuned.module),
        "plan.json": plan_json(
            (provenance.model, provenance.job.get("model_args")),
            plan,
            builder.kept(plan),
            builder.network.origin,
            layer_groups_of(tuned.module, builder.module) if builder.network.origin == "own" else None,
            builder.dropped(plan),
        ),
    }
    if builder.network.origin == "rebuilt":
        files[NETWORK_FILE] = builder.skeleton(plan)
    if profile.runtime.ort_format:
        others, shown = ort_files(pruned.data, final.precision, profile, task.inputs(PARITY_INPUTS))
        files, proofs = {**files, **others}, (*proofs, shown)
    return files, proofs


def _validation(context: RunContext, tuned: Finetuned, chosen: Candidate, final: Final) -> dict[str, float]:
    """Scores on the validation data: the dense network, the chosen plan before and after training, and int8 if it ships."""
    builder, task = context.builder, context.task
    step = functools.partial(begin_step, context.callback.progress)
    scores = {
        "dense": task.validate(builder.module, step("validating the dense network")),
        "before_finetuning": (chosen.score or 0.0) if tuned.start is None else tuned.start,
        "after_finetuning": task.validate(tuned.module, step("validating the trained network")),
    }
    if final.precision == "int8":
        scores["int8"] = task.validate(OnnxModule(final.pruned.data), step("validating the int8 file"))
    return scores


def _golden(data: bytes, inputs: Inputs) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """`inputs` and the file's answers for them, by name."""
    file = OnnxModule(data)
    answers = arrays_in(outputs_of(file(inputs)))
    return dict(zip(file.input_names, arrays_in(inputs), strict=True)), dict(zip(file.output_names, answers, strict=True))


def _dropped_blocks(space: PruneSpace, plan: ChannelPlan) -> dict[str, bool]:
    """Block -> whether `plan` drops it, or a block around it."""
    gone = set(plan.dropped)
    gone |= {name for block in space.blocks if block.name in gone for name in block.inside}
    return {block.name: block.name in gone for block in space.blocks}


def _reported(artifact: Artifact, page: Callable[[Artifact], bytes], callback: Callback) -> tuple[bytes, Artifact]:
    """The report, and the artifact that it describes. A failed report does not cost the run its artifact: a page with the reason
    replaces it, and the artifact gets a notice. artifact.json holds all figures.
    """
    try:
        return page(artifact), artifact
    except Exception as problem:
        notice = (
            f"the report could not be written ({type(problem).__name__}: {one_line(problem)}); artifact.json holds all figures"
        )
        callback.notice(notice)
        text = f"<!doctype html><meta charset=utf-8><title>Report</title><p>{html.escape(notice)}</p>"
        return text.encode("utf-8", "replace"), replace(artifact, notices=(*artifact.notices, notice))


def final_file(context: RunContext, tuned: nn.Module, chosen: Candidate) -> Final:
    """The exported, simplified and verified float32 file of the trained network. It has the structure of the measured candidate.

    The same network and job give the same bytes, because dates and measurements are in artifact.json, not in the file. Raises
    ShipError if the export is another graph than the measured one, or if it answers differently from `tuned`.
    """
    context.callback.progress(0, 0, "exporting the trained network")
    exported = context.builder.trained(tuned, chosen.plan)
    stamp(exported, _facts(context, tuned))
    if structure_of(exported) != chosen.structure:
        raise ShipError(
            "the exported file differs from the measured graph in operators or shapes; no artifact is written, because the "
            "measurements belong to another file"
        )
    context.callback.progress(0, 0, f"simplifying the file, and comparing it with torch on {PARITY_INPUTS} inputs")
    verified = verified_file(tuned, exported.SerializeToString(deterministic=True), context.task.inputs(PARITY_INPUTS))
    graph = load_graph(verified.data)
    same = structure_of(graph) == chosen.structure
    proof = (
        "the file has the structure of the candidate that was measured in the search"
        if same
        else "the export has the structure of the measured candidate; simplification changed it, and it was measured again"
    )
    pruned = PrunedModel(chosen.plan, graph, context.builder.example, lambda: tuned, tolerance=context.builder.tolerance)
    return Final(pruned, (*verified.proofs, proof))


def with_int8(context: RunContext, final: Final, tried: Quantised) -> Final:
    """The int8 file if it is to ship; otherwise `final`, with a notice that says why."""
    if tried.pruned is None:
        context.notices.add(*tried.said)
        return replace(final, rows=tried.rows)
    return Final(tried.pruned, (*final.proofs, *tried.said), "int8", tried.rows)


def _facts(context: RunContext, tuned: nn.Module) -> dict[str, str]:
    """Metadata that is written into the file. `METADATA` is the prefix of its keys."""
    provenance = context.provenance
    return {
        "weights": sha256_bytes(weights_bytes(tuned)),
        "job": sha256_bytes(json.dumps(provenance.job, sort_keys=True, default=str).encode()),
        "model": provenance.model,
        "target": context.profile.device.name,
        **{f"version.{name}": version for name, version in installed_versions(("edge-compress", "torch", "onnx")).items()},
    }
