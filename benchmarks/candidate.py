"""What one candidate costs, and what it would cost with a graph library alone. Run: make bench

For each network, plans at random widths, made in turn both ways:

  here     write the recipe, hand it to the probe (slicing, sessions in fresh processes, timed runs), score the torch module
  library  deep copy, torch-pruning at the same widths, torch.onnx.export, a new session

Both ways end with a file that can be timed; timed runs and scoring, which both need, are shown and left out of the ratio.
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

from pipeline.graph.drafts import Draft, Drafts, start_drafts
from pipeline.graph.export import export, stripped
from pipeline.load import find_model
from pipeline.measurement import Measurement
from pipeline.offer import search_space
from pipeline.plan import ChannelPlan
from pipeline.prepare import file_format
from pipeline.probe.base import Effort, Graph, Reference
from pipeline.probe.local import LocalProbe
from pipeline.profile import load_profile
from pipeline.scoring import recalibrate

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), 224, 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), 224, 64),
    "vgg16_bn (32x32)": (lambda: find_model("vgg16_bn").factory(), 32, 1024),
}
"""Name -> factory, input side, images that a score looks at here (half to re-estimate BatchNorm, half to answer)."""


@dataclass
class Costs:
    """Milliseconds of each part, one entry per candidate."""

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
    """Candidates both ways, in turn."""
    profile = load_profile(target)
    profile = profile.model_copy(update={"probe": profile.probe.model_copy(update={"retries": 0})})
    example = torch.randn(1, 3, side, side)
    form = file_format(profile, print, ask=True)
    with tempfile.TemporaryDirectory() as folder:
        drafts = start_drafts(module, example, form.opset, form.ir_version, "l2", [], Path(folder, "dense.onnx"), seed)
    if drafts.sliceable is None:
        raise click.ClickException(drafts.proof)
    step = profile.runtime.channel_step
    space = search_space(drafts, 4 if step == "measured" else int(step))
    dense = drafts.make(space.dense())
    probe = LocalProbe(profile, Reference(_graph(dense), example.numpy()))
    batch = torch.randn(images // 2, 3, side, side)
    generator = np.random.default_rng(seed)
    costs = Costs([], [], [], [], [], [])
    try:
        for _ in range(candidates + 1):
            plan = space.plan(generator.uniform(0.2, 0.9, len(space.choices)).tolist())
            _ours(drafts, plan, probe, processes, batch, costs)
            costs.library_ms.append(_library(drafts, plan))
    finally:
        probe.close()
    return Costs(**{name: values[1:] for name, values in vars(costs).items()})  # the first pays for warming up


def _ours(drafts: Drafts, plan: ChannelPlan, probe: LocalProbe, processes: int, batch: torch.Tensor, costs: Costs) -> None:
    started = time.perf_counter()
    draft = drafts.make(plan)
    made = time.perf_counter()
    measured = probe.measure(_graph(draft), Effort(processes, memory=False, fresh=False))
    if not isinstance(measured, Measurement):
        raise click.ClickException(f"{measured.kind}: {measured.detail}")
    weighed = time.perf_counter()
    recalibrate(draft.module, [batch])
    with torch.inference_mode():
        draft.module(batch)
    scored = time.perf_counter()
    # the processes load, and run for the first time, side by side; that run is a figure of its own too
    timed_ms = max(p.first_run_ms for p in measured.processes) + sum(p.timed_ms for p in measured.processes)
    costs.slice_ms.append(1e3 * (made - started))
    costs.sessions_ms.append(1e3 * (weighed - made) - timed_ms)
    costs.timed_ms.append(timed_ms)
    costs.scoring_ms.append(1e3 * (scored - weighed))
    costs.ours_ms.append(1e3 * (weighed - started) - timed_ms)


def _graph(draft: Draft) -> Graph:
    return Graph(lambda: draft.data, draft.structure, None, draft.recipe)


def _library(drafts: Drafts, plan: ChannelPlan) -> float:
    """The same widths as a user of torch-pruning would get them, up to a session that can be timed."""
    started = time.perf_counter()
    module = copy.deepcopy(drafts.module)
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=drafts.example, verbose=False)
    for name, kept in drafts.kept(plan).items():
        layer = module.get_submodule(name)
        width = layer.get_parameter("weight").shape[0]
        gone = sorted(set(range(width)) - set(kept))
        if gone:
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, gone).prune()
    data = stripped(export(module, drafts.example, drafts.opset, drafts.ir_version), drafts.ir_version).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return 1e3 * (time.perf_counter() - started)


def _cell(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.0f}{unit} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    main()
