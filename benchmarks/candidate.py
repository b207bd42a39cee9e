"""What one candidate costs, and what it would cost with a graph library alone. Run: make bench

Plans at random widths are made in both ways, in turn, for each network:

  here     make weight slices, give them to the probe (slicing, sessions in fresh processes, timed runs), score the torch module
  library  deep copy, torch-pruning at the same widths, torch.onnx.export, a new session

Both ways end with a file that can be timed. Timed runs and scoring are needed in both; they are shown, but not in the ratio.
"""

import copy
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
import torch_pruning
import torchvision
from torch import nn

from pipeline.core.measurement import Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.graph.export import export, stripped
from pipeline.graph.importance import Ranking
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder, start_builder
from pipeline.probe.interface import Graph, MeasurementOptions, Reference
from pipeline.probe.local import LocalProbe
from pipeline.stages.prepare import file_format
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import share_device
from pipeline.training.load import find_model
from pipeline.training.scoring import recalibrate

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), 224, 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), 224, 64),
    "vgg16_bn (32x32)": (lambda: find_model("vgg16_bn").factory(), 32, 1024),
}
"""Name -> factory, input side, number of images per score (half re-estimate BatchNorm, half are answered)."""


@dataclass
class Costs:
    """Milliseconds of each part, with one entry per candidate."""

    slice_ms: list[float]
    sessions_ms: list[float]
    timed_ms: list[float]
    scoring_ms: list[float]
    ours_ms: list[float]
    library_ms: list[float]


@click.command()
@click.option("--candidates", default=10, show_default=True, help="Per network.")
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--processes", type=int, help="Fresh ones that load and time each candidate.  [default: the profile's]")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Append raw figures here, as JSON lines.")
def main(candidates: int, target: str, processes: int | None, seed: int, out: Path | None) -> None:
    """Print a table of medians with the smallest and the largest figure."""
    warnings.simplefilter("ignore")
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    processes = processes or load_profile(target).probe.processes
    print(f"{platform.machine()}, {torch.get_num_threads()} cores, {versions}, {target}, {processes} processes a candidate")
    print("| network | slice | sessions | timed runs | scoring | without timed runs and scoring | torch-pruning alone | factor |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    for name, (factory, side, images) in NETWORKS.items():
        torch.manual_seed(seed)
        costs = measure(factory().eval(), side, images, candidates, target, processes, seed)
        ratios = [theirs / ours for theirs, ours in zip(costs.library_ms, costs.ours_ms, strict=True)]
        cells = (costs.slice_ms, costs.sessions_ms, costs.timed_ms, costs.scoring_ms, costs.ours_ms, costs.library_ms)
        print(f"| {name} | {' | '.join(_cell(values, ' ms') for values in cells)} | {_cell(ratios, 'x')} |")
        if out:
            with out.open("a") as file:
                file.write(
                    json.dumps({"network": name, "target": target, "processes": processes, "seed": seed, **vars(costs)}) + "\n"
                )


def measure(module: nn.Module, side: int, images: int, candidates: int, target: str, processes: int, seed: int) -> Costs:
    """Measure candidates in both ways, in turn."""
    profile = load_profile(target)
    profile = profile.model_copy(update={"probe": profile.probe.model_copy(update={"retries": 0})})
    example = torch.randn(1, 3, side, side)
    with share_device(profile, print) as device:
        form = file_format(device, ask=True)
    with tempfile.TemporaryDirectory() as folder:
        builder = start_builder(module, example, form, Ranking(), Path(folder, "dense.onnx"))
    step = profile.runtime.channel_step
    space = search_space(builder, 4 if step == "measured" else int(step))
    dense = builder.make(space.dense())
    probe = LocalProbe(profile, Reference(_graph(dense), example.numpy()))
    batch = torch.randn(images // 2, 3, side, side)
    generator = np.random.default_rng(seed)
    costs = Costs([], [], [], [], [], [])
    try:
        for _ in range(candidates + 1):
            plan = space.plan(generator.uniform(0.2, 0.9, len(space.choices)).tolist())
            _ours(builder, plan, probe, processes, batch, costs)
            costs.library_ms.append(_library(builder, plan))
    finally:
        probe.close()
    return Costs(**{name: values[1:] for name, values in vars(costs).items()})  # the first one includes warming up


def _ours(
    builder: PrunedModelBuilder, plan: ChannelPlan, probe: LocalProbe, processes: int, batch: torch.Tensor, costs: Costs
) -> None:
    started = time.perf_counter()
    pruned = builder.make(plan)
    made = time.perf_counter()
    measured = probe.measure(_graph(pruned), MeasurementOptions(processes, memory=False, fresh=False))
    if not isinstance(measured, Measurement):
        raise click.ClickException(f"{measured.kind}: {measured.detail}")
    weighed = time.perf_counter()
    recalibrate(pruned.module, [batch])
    with torch.inference_mode():
        pruned.module(batch)
    scored = time.perf_counter()
    # the processes load and do their first run side by side; that run is a figure of its own
    timed_ms = max(p.first_run_ms for p in measured.processes) + sum(p.timed_ms for p in measured.processes)
    costs.slice_ms.append(1e3 * (made - started))
    costs.sessions_ms.append(1e3 * (weighed - made) - timed_ms)
    costs.timed_ms.append(timed_ms)
    costs.scoring_ms.append(1e3 * (scored - weighed))
    costs.ours_ms.append(1e3 * (weighed - started) - timed_ms)


def _graph(pruned: PrunedModel) -> Graph:
    return Graph(lambda: pruned.data, pruned.structure, None, pruned.weight_slices)


def _library(builder: PrunedModelBuilder, plan: ChannelPlan) -> float:
    """Make the same widths as a user of torch-pruning would, up to a session that can be timed. Returns milliseconds."""
    started = time.perf_counter()
    module = copy.deepcopy(builder.module)
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=builder.example, verbose=False)
    for name, kept in builder.kept(plan).items():
        layer = module.get_submodule(name)
        width = layer.get_parameter("weight").shape[0]
        gone = sorted(set(range(width)) - set(kept))
        if gone:
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, gone).prune()
    data = stripped(export(module, builder.example, builder.opset, builder.ir_version), builder.ir_version).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return 1e3 * (time.perf_counter() - started)


def _cell(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.0f}{unit} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
