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

from pipeline.core.artifact import Artifact, PrecisionRow, Row
from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.core.budget import Constraint, Metric, Verdict, known_metrics, worst_verdict
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure
from pipeline.core.paired_difference import images_to_decide, paired_drop
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
from pipeline.packaging.ort import ort_files
from pipeline.packaging.pack import NETWORK_FILE, file_facts, pack, plan_json, weights_bytes
from pipeline.packaging.serving import GOLDEN_INPUTS, device_limits, serving_files
from pipeline.packaging.verify import PARITY_INPUTS, verified_file
from pipeline.stages.context import RunContext
from pipeline.stages.probes import FinalProbe
from pipeline.stages.sequential_measurement import measure_longer
from pipeline.stages.try_int8 import Quantised
from pipeline.system.files import sha256_bytes
from pipeline.system.versions import installed_versions
from pipeline.training.finetune import Finetuned
from pipeline.training.scoring import OnnxModule

__all__ = ["Final", "budget_rows", "final_file", "ship", "with_int8"]

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
    builder, task, profile, constraints = context.builder, context.task, context.profile, context.constraints
    provenance, dense = context.provenance, judge.dense
    pruned, proofs = final.pruned, final.proofs
    processes = profile.probe.final_processes
    measured = measure_longer(judge.probe, pruned, processes, constraints, dense, context.callback)
    if isinstance(measured, Failure):
        raise ShipError(f"the final file could not be measured: {measured.kind}: {measured.detail}")
    if text := board_summary(measured):
        context.notices.add(text)
    step = functools.partial(begin_step, context.callback.progress)
    tested = (
        task.test(OnnxModule(builder.make(builder.space.dense()).data), step("testing the dense network")),
        task.test(OnnxModule(pruned.data), step("testing the final file")),
    )
    dense = replace(dense, score=tested[0].value)
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
    golden = task.inputs(GOLDEN_INPUTS)
    limits = device_limits(constraints, dense, shipped)
    files = {
        "model.onnx": pruned.data,
        **serving_files(profile, *_golden(pruned.data, golden), limits, final.precision),
        "weights.safetensors": weights_bytes(tuned.module),
        "plan.json": plan_json(
            (provenance.model, provenance.job.get("model_args")),
            chosen.plan,
            builder.kept(chosen.plan),
            builder.network.origin,
            layer_groups_of(tuned.module) if builder.network.origin == "own" else None,
            builder.dropped(chosen.plan),
        ),
    }
    if builder.network.origin == "rebuilt":
        files[NETWORK_FILE] = builder.skeleton(chosen.plan)
    if profile.runtime.ort_format:
        others, shown = ort_files(pruned.data, final.precision, profile, task.inputs(PARITY_INPUTS))
        files, proofs = {**files, **others}, (*proofs, shown)
    rows, widths = tuple(budget_rows(constraints, dense, shipped, task.score_name)), dict(chosen.plan)
    artifact = Artifact(
        format=ARTIFACT_FORMAT,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=provenance.command,
        job=provenance.job,
        profile=profile.model_dump(mode="json"),
        data=task.description,
        versions={"python": platform.python_version(), **installed_versions(PACKAGES)},
        files=file_facts(files),
        verdict=worst_verdict(row.verdict for row in rows if row.verdict),
        rows=rows,
        dense=dense,
        shipped=shipped,
        validation={
            "dense": task.validate(builder.module, step("validating the dense network")),
            "before_finetuning": (chosen.score or 0.0) if tuned.start is None else tuned.start,
            "after_finetuning": task.validate(tuned.module, step("validating the trained network")),
            **(
                {"int8": task.validate(OnnxModule(pruned.data), step("validating the int8 file"))}
                if final.precision == "int8"
                else {}
            ),
        },
        proofs=(builder.proof, *proofs),
        notices=context.notices.texts,
        widths={group.name: (widths.get(group.name, 0), group.channels, group.bundle) for group in builder.space.groups},
        frozen=builder.space.frozen,
        phase_seconds=context.run.phase_seconds(),
        learning_rate=tuned.learning_rate,
        finetuned_epoch=tuned.epoch,
        precision=final.precision,
        precisions=final.rows,
        forecasts=context.run.forecasts,
        network=builder.network.origin,
        network_reason=builder.network.reason,
        blocks=_dropped_blocks(builder.space, chosen.plan),
    )
    step("writing the report and the artifact")
    report, artifact = _reported(artifact, page, context.callback)
    artifact = replace(artifact, files={**artifact.files, **file_facts({"report.html": report})})
    pack(context.run.artifact, artifact, {**files, "report.html": report})
    return artifact


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
    return Final(PrunedModel(chosen.plan, graph, context.builder.example, lambda: tuned), (*verified.proofs, proof))


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


def budget_rows(
    constraints: tuple[Constraint, ...], dense: Candidate, shipped: Candidate, score_name: str = "accuracy"
) -> list[Row]:
    """The rows of the budget's limits first, then the other figures for information. `score_name`: see `Task.score_name`."""
    limited = {constraint.metric.key for constraint in constraints}
    others = [metric for metric in known_metrics().values() if metric.key not in limited]
    return [
        replace(row, title=f"{score_name} (test)") if row.key == "accuracy_drop" else row
        for row in (
            *(_row(constraint.metric, constraint, dense, shipped) for constraint in constraints),
            *(_row(metric, None, dense, shipped) for metric in others),
        )
    ]


def _row(metric: Metric, constraint: Constraint | None, dense: Candidate, shipped: Candidate) -> Row:
    before, after = metric.absolute(dense, dense), metric.absolute(shipped, dense)
    if shipped.measurement:
        # the dense graph as it ran in the same minutes, not as it ran at the start
        paired = {"latency_p50": shipped.measurement.reference_p50_ms, "latency_p90": shipped.measurement.reference_p90_ms}
        before = paired.get(metric.key) or before
    is_accuracy = metric.key == "accuracy_drop"
    drop = shipped.drop if is_accuracy else None
    verdict = _verdict(constraint, shipped, dense) if constraint else None
    return Row(
        key=metric.key,
        title=metric.title,
        unit=metric.unit,
        dense=dense.score if is_accuracy else before.value if before else None,
        after=shipped.score if is_accuracy else after.value if after else None,
        ratio=metric.relative(shipped, dense) if metric.relative else None,
        limit=constraint.limit if constraint else None,
        relative=constraint.relative if constraint else False,
        verdict=verdict,
        drop=drop.estimate if drop else None,
        test_images_needed=images_to_decide(drop, constraint.limit) if drop and constraint and verdict == "undecided" else None,
        reason=constraint.reason(shipped, dense) if constraint else "",
    )


def _verdict(constraint: Constraint, shipped: Candidate, dense: Candidate) -> Verdict:
    """The verdict on one limit. Only the device can say 'within': a predicted 'within' becomes 'undecided'."""
    found = constraint.verdict(shipped, dense)
    predicted = shipped.measurement is not None and shipped.measurement.fingerprint.mode == "predicted"
    return "undecided" if found == "within" and predicted and constraint.metric.measured else found
