"""Torch-Pruning's own pruners, bisected to the same measured latency and fine-tuned in the same way. quality.py uses them."""

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch_pruning
from torch import nn

from pipeline.core.budget import Constraint, read_budget
from pipeline.core.candidate import Candidate
from pipeline.core.profile import load_profile
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building, start_probe
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.sequential_measurement import candidate_of, measure_sequentially
from pipeline.stages.shared_device import share_device
from pipeline.stages.supernet import BATCH, MOST_STEPS
from pipeline.training.scoring import OnnxModule
from pipeline.training.task import Classification

RIVALS = {
    "torch-pruning, uniform": (False, False),
    "torch-pruning, global": (True, False),
    "torch-pruning, uniform, trained as long": (False, True),
}
"""Row -> whether one threshold serves all layers; whether fine-tuning is longer by the images that a supernet sees."""
BISECTIONS = 10


def run_rival(job: Job, rival: str, metric: str, folder: Path) -> dict[str, Any]:
    """Run one cell: bisect the pruning ratio to the limit on `metric`, fine-tune, measure again, test."""
    started = time.monotonic()
    profile = load_profile(job.target)
    (constraint,) = (each for each in read_budget(profile, job.budget, ()) if each.metric.key == metric)
    one_threshold, longer = RIVALS[rival]
    loaded = load_model_and_task(job, profile)
    task = loaded.task
    if longer and isinstance(task, Classification):
        added = math.ceil(MOST_STEPS * BATCH / len(task.splits.train))
        task = replace(task, settings=replace(task.settings, epochs=task.settings.whole_epochs + added))
    with share_device(profile, print) as device:
        with tempfile.TemporaryDirectory() as scratch:
            builder = start_building(job, loaded, Path(scratch) / "dense.onnx", device)
        probe = start_probe(device, builder, dry_run=False)
        dense = measured(probe, builder.make(builder.space.dense()), profile.probe.processes, builder)
        low, high, best = 0.0, 1.0, None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            module = pruned_by_rival(builder, middle, global_pruning=one_threshold)
            pruned = model_of(module, builder)
            if within(constraint, measured(probe, pruned, profile.probe.processes, builder), dense):
                best, high = module, middle
            else:
                low = middle
        if best is None:
            raise SystemExit(f"{rival}: no ratio meets {constraint.text}")
        tuned = task.finetune(best, builder.module, job.seed, folder / "finetune.safetensors", lambda *_: None)
        final = model_of(tuned.module, builder)
        shipped = measured(probe, final, profile.probe.final_processes, builder, (constraint,), dense)
    figure = constraint.figure(shipped, dense)
    ratio = shipped.measurement.relative_p50 if shipped.measurement else None
    return {
        "accuracy": task.test(OnnxModule(final.data)).value,
        "dense_accuracy": task.test(builder.module).value,
        "latency_p50": ratio.value if ratio else float("nan"),
        "used": (figure.value if figure else float("nan")) / constraint.limit,
        "verdict": constraint.verdict(shipped, dense),
        "learning_rate": tuned.learning_rate,
        "params": final.params,
        "macs": final.macs,
        "seconds": time.monotonic() - started,
        "machine": shipped.measurement.fingerprint.machine if shipped.measurement else "",
    }


def pruned_by_rival(builder: PrunedModelBuilder, ratio: float, *, global_pruning: bool) -> nn.Module:
    """A copy of the dense network, narrowed as a user of the library would do it. The output layer is kept."""
    module = copy.deepcopy(builder.module)
    answers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]
    pruner = torch_pruning.pruner.BasePruner(
        module,
        builder.example,
        torch_pruning.importance.MagnitudeImportance(p=1),
        global_pruning=global_pruning,
        pruning_ratio=ratio,
        ignored_layers=[answers],
    )
    pruner.step()
    return module.eval()


def model_of(module: nn.Module, builder: PrunedModelBuilder) -> PrunedModel:
    """The module and its ONNX file. The plan is only a name."""
    make: Callable[[], nn.Module] = lambda: copy.deepcopy(module)  # noqa: E731
    return PrunedModel(builder.space.dense(), builder.exported(module), builder.example, make)


def measured(
    probe: Probe,
    pruned: PrunedModel,
    processes: int,
    builder: PrunedModelBuilder,
    decisive: tuple[Constraint, ...] = (),
    dense: Candidate | None = None,
) -> Candidate:
    """Measured like a candidate of the search or, if `dense` is given, sequentially like a shipped file."""
    if dense is None:
        found = probe.measure(graph_of(pruned), MeasurementOptions(processes, memory=False, fresh=False))
    else:
        found = measure_sequentially(probe, pruned, processes, decisive, dense)
    return candidate_of(pruned, found, None)


def within(constraint: Constraint, candidate: Candidate, dense: Candidate) -> bool:
    """Whether the upper end of the interval is within the limit, as in the search."""
    violation = None if candidate.failure else constraint.violation(candidate, dense)
    return violation is not None and violation.high <= 0
