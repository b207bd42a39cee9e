"""What one candidate costs, and what it would cost with a graph library alone. Run: make bench

Plans at random widths are made in three ways, in turn, for each network:

  here      make weight slices, give them to the probe (slicing, sessions in fresh processes, timed runs), score the torch module
  library   deep copy, torch-pruning at the same widths, torch.onnx.export(..., dynamo=True), a new session
  hurry     the same with torch.onnx.export(..., dynamo=False), which is faster but works for fewer networks

The first table compares the making of a file that can be timed. Timed runs and scoring are needed in every way, so they do not
count there. The second table compares whole trials: making, sessions, timed runs and scoring. The file that was exported in a
hurry is measured and scored like a candidate. Two steps are taken here only, and they count under scoring: the comparison with
torch's output and the least-squares reconstruction.
"""

import copy
import io
import json
import logging
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
import torch_pruning
import torchvision
from candidate_costs import Costs, tables
from torch import Tensor, nn

from pipeline.core.measurement import Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import Profile, load_profile
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder, start_builder
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import shrink
from pipeline.probe.interface import Graph, MeasurementOptions, Reference
from pipeline.probe.local import LocalProbe
from pipeline.stages.prepare import file_format
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import share_device
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.execution_mode import layout_of
from pipeline.training.load import find_model
from pipeline.training.scoring import BATCH, recalibrate

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet20 (32x32)": (lambda: find_model("resnet20").factory(), 32, 2048),
    "vgg16_bn (32x32)": (lambda: find_model("vgg16_bn").factory(), 32, 2048),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), 224, 64),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(weights=None), 224, 64),
}
"""Name -> factory, input side, number of images per score (half re-estimate BatchNorm, half are answered). A run of `compress`
re-estimates with 1024 images and answers up to 2000."""


@dataclass(frozen=True)
class Bench:
    """One network, ready to make candidates."""

    builder: PrunedModelBuilder
    probe: LocalProbe
    reconstruction: Reconstruction
    images: Tensor
    processes: int


@click.command()
@click.option("--candidates", default=10, show_default=True, help="Per network.")
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)), help="[default: all]")
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--processes", type=int, help="Fresh ones that load and time each candidate.  [default: the profile's]")
@click.option("--seed", default=0, show_default=True)
@click.option("--label", default="", help="Written into each raw line, for example the version that was measured.")
@click.option("--out", type=click.Path(path_type=Path), help="Append raw figures here, as JSON lines.")
@click.option(
    "--table", type=click.Path(exists=True, path_type=Path), help="Measure nothing; print the tables of these raw lines."
)
def main(
    candidates: int,
    networks: tuple[str, ...],
    target: str,
    processes: int | None,
    seed: int,
    label: str,
    out: Path | None,
    table: Path | None,
) -> None:
    """Print tables of medians with the smallest and the largest figure."""
    warnings.simplefilter("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    if table:
        print(tables([json.loads(text) for text in table.read_text().splitlines()]))
        return
    profile = load_profile(target)
    processes = processes or profile.probe.processes
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{platform.machine()}, {torch.get_num_threads()} cores, {versions}, {target}, {processes} processes a candidate")
    lines = []
    for name in networks or NETWORKS:
        factory, side, images = NETWORKS[name]
        torch.manual_seed(seed)
        costs = measure(factory().eval(), torch.randn(images, 3, side, side), profile, processes, candidates, seed)
        line = {"network": name, "label": label, "target": target, "processes": processes, "images": images, "seed": seed}
        lines.append(line | asdict(costs))
        if out:
            with out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    print(tables(lines))


def measure(module: nn.Module, images: Tensor, profile: Profile, processes: int, candidates: int, seed: int) -> Costs:
    """Measure candidates in all ways, in turn. `images` are those of a score, (N, C, H, W)."""
    profile = profile.model_copy(update={"probe": profile.probe.model_copy(update={"retries": 0})})
    example = images[:1]
    with share_device(profile, print) as device:
        form = file_format(device, ask=True)
    with tempfile.TemporaryDirectory() as folder:
        builder = start_builder(module, example, form, PruningSettings(), Path(folder, "dense.onnx"))
    step = profile.runtime.channel_step
    space = search_space(builder, 4 if step == "measured" else int(step))
    dense = builder.make(space.dense())
    generator = np.random.default_rng(seed)
    costs = Costs()
    probe = LocalProbe(profile, Reference(_graph(dense), example.numpy()))
    halves = images[: len(images) // 2].split(BATCH)
    bench = Bench(builder, probe, start_reconstruction(builder.module, builder.space, halves), images, processes)
    try:
        for _ in range(candidates + 1):
            plan = space.plan(generator.uniform(0.2, 0.9, len(space.choices)).tolist())
            _ours(bench, plan, costs)
            _library(bench, plan, costs)
    finally:
        probe.close()
    return Costs(**{name: values[1:] for name, values in vars(costs).items()})  # the first one includes warming up


def _ours(bench: Bench, plan: ChannelPlan, costs: Costs) -> None:
    builder, started = bench.builder, time.perf_counter()
    pruned = builder.make(plan)
    costs.slice_ms.append(_since(started))
    measured_ms, timed_ms = _measured(bench, _graph(pruned))
    costs.sessions_ms.append(measured_ms - timed_ms)
    costs.timed_ms.append(timed_ms)
    started = time.perf_counter()
    pruned.answers  # noqa: B018 - computed when it is read; the probe compares the file's output with it
    kept = builder.kept(plan)
    module = shrink(builder.module, builder.space, kept).eval()
    bench.reconstruction.apply(module, kept)
    _score(module, bench.images)
    costs.scoring_ms.append(_since(started))


def _library(bench: Bench, plan: ChannelPlan, costs: Costs) -> None:
    started = time.perf_counter()
    _exported(_pruned(bench.builder, plan), bench.builder, dynamo=True)
    costs.library_ms.append(_since(started))
    started = time.perf_counter()
    module = _pruned(bench.builder, plan)
    data = _exported(module, bench.builder, dynamo=False)
    costs.hurry_ms.append(_since(started))
    started = time.perf_counter()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    costs.session_ms.append(_since(started))
    costs.measured_ms.append(_measured(bench, Graph(data, f"library {plan.widths}"))[0])
    started = time.perf_counter()
    _score(module, bench.images)
    costs.scored_ms.append(_since(started))


def _measured(bench: Bench, graph: Graph) -> tuple[float, float]:
    """Milliseconds of a measurement, and those of them in which the file and the dense file run."""
    started = time.perf_counter()
    found = bench.probe.measure(graph, MeasurementOptions(bench.processes, memory=False, fresh=False))
    passed_ms = _since(started)
    if not isinstance(found, Measurement):
        raise click.ClickException(f"{found.kind}: {found.detail}")
    # the processes load and do their first run side by side; that run is a figure of its own
    return passed_ms, max(p.first_run_ms for p in found.processes) + sum(p.timed_ms for p in found.processes)


def _score(module: nn.Module, images: Tensor) -> None:
    """Re-estimate BatchNorm with one half of the images, and answer the other, as a run of `compress` does."""
    half = len(images) // 2
    module.to(memory_format=layout_of(module))
    with mixed_precision(torch.device("cpu")):
        recalibrate(module, images[:half].split(BATCH))
        with torch.inference_mode():
            for batch in images[half:].split(BATCH):
                module(batch.to(memory_format=layout_of(module)))


def _graph(pruned: PrunedModel) -> Graph:
    return Graph(lambda: pruned.data, pruned.structure, None, pruned.weight_slices)


def _pruned(builder: PrunedModelBuilder, plan: ChannelPlan) -> nn.Module:
    """A copy of the dense network with the widths of `plan`, made as a user of torch-pruning would do it."""
    module = copy.deepcopy(builder.module)
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=builder.example, verbose=False)
    for name, kept in builder.kept(plan).items():
        layer = module.get_submodule(name)
        width = layer.get_parameter("weight").shape[0]
        gone = sorted(set(range(width)) - set(kept))
        if gone:
            graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, gone).prune()
    return module.eval()


def _exported(module: nn.Module, builder: PrunedModelBuilder, *, dynamo: bool) -> bytes:
    """The ONNX file of `module`, without any check."""
    if dynamo:
        program = torch.onnx.export(module, (builder.example,), dynamo=True, opset_version=builder.opset, verbose=False)
        return bytes(program.model_proto.SerializeToString())  # type: ignore[union-attr]
    buffer = io.BytesIO()
    torch.onnx.export(module, (builder.example,), buffer, dynamo=False, opset_version=builder.opset)  # type: ignore[arg-type]
    return buffer.getvalue()


def _since(started: float) -> float:
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
