"""What a trial before fine-tuning costs, and whether cheaper scores rank plans alike. Run: python benchmarks/score_cost.py --help

Random plans of each network are scored in three ways, in turn, in one thread. The figure is processor time:

  before   statistics of BatchNorm from 1,024 images, BatchNorm as a layer of its own, accuracy on 2,000 images
  now      what a search does: statistics from 128 images, folded BatchNorm, clear losers on fewer images
  plain    a user's own loop: deep copy, torch-pruning, export by TorchScript, a session, scored as before

Before and now include the making of the candidate: its slices, weights, reconstruction and the outputs that its file must have.
Timed runs are left out. They are the same in every way. Each plan is one raw line; finished plans are not run again.

With `--device cuda`, *now* scores on the GPU and the others on the processor. The figure is then the time that passes. Such rows
have the name of the device.
"""

import itertools
import json
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import onnxruntime
import torch
import torchvision
from candidate import _exported, _pruned
from scipy.stats import spearmanr
from scores import random_plans
from torch import nn

from pipeline.core.compute_device import computing_on, find_device
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import load_profile
from pipeline.data.folder import memory_fetch
from pipeline.data.images import Splits
from pipeline.data.preprocessing import Preprocessing
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import shrink
from pipeline.search.problem import SearchSpace
from pipeline.stages.job import Job
from pipeline.stages.prepare import load_model_and_task, start_building
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import share_device
from pipeline.system.malloc import keep_freed_memory
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.execution_mode import layout_of
from pipeline.training.folded_norms import find_folds, set_folds
from pipeline.training.scoring import accuracy, calibration_images, recalibrate
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

RESULTS = Path(__file__).with_name("results") / "score_cost.jsonl"
STEP = 4
WEIGHTS = {
    "resnet20": "resnet20-cifar10.safetensors",
    "resnet56": "resnet56-cifar10.safetensors",
    "vgg16_bn": "vgg16bn_cifar10jpeg.safetensors",
}
MOBILENET = "mobilenet_v2, 224 pixels"
NETWORKS = (*WEIGHTS, MOBILENET)
SCORED, STATISTICS, SIDE = 2000, 1024, 224
PROCESSOR = torch.device("cpu")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Bench:
    """One network with its data, ready to score plans."""

    task: Classification
    builder: PrunedModelBuilder
    space: SearchSpace
    reconstruction: Reconstruction

    def made(self, plan: ChannelPlan) -> nn.Module:
        """Everything of a candidate but its measurement and its score."""
        pruned = self.builder.make(plan)
        pruned.answers  # noqa: B018 - computed when it is read; the probe compares the file's output with it
        kept = self.builder.kept(plan)
        module = shrink(self.builder.module, self.builder.space, kept).eval()
        self.reconstruction.apply(module, kept)
        return module

    def scored_before(self, module: nn.Module) -> float:
        """The score as it was computed before statistics had fewer images."""
        task = self.task
        module.to(memory_format=layout_of(module))
        with mixed_precision(torch.device("cpu")):
            recalibrate(module, (pixels for pixels, _ in calibration_images(task.splits.pictures, task.seed).batches()))
            return accuracy(module, task._scoring_images())


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(NETWORKS), help="[default: all]")
@click.option("--weights", type=click.Path(path_type=Path), default=Path("models"), show_default=True, help="Folder.")
@click.option("--data", default="./cifar10-jpeg", show_default=True)
@click.option("--macs", "share", default=0.4, show_default=True, help="Share of the dense network's that a plan has.")
@click.option("--plans", default=60, show_default=True)
@click.option("--plain", default=5, show_default=True, help="Number of plans that are also made by the plain loop.")
@click.option("--device", default="cpu", show_default=True, help="Where the scores of now are computed.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--table", is_flag=True, help="Print the table of the raw lines; without data or weights.")
def main(
    networks: tuple[str, ...],
    weights: Path,
    data: str,
    share: float,
    plans: int,
    plain: int,
    device: str,
    out: Path,
    table: bool,
) -> None:
    """Score the plans that are missing; print the table."""
    warnings.simplefilter("ignore")
    keep_freed_memory()
    torch.set_num_threads(1)
    for network in () if table else networks or NETWORKS:
        known = [line for line in lines_of(out) if line["network"] == network and line.get("device", "cpu") == device]
        if len(known) >= plans:
            continue
        bench = start_bench(network, weights, data)
        dense_macs = bench.builder.make(bench.space.dense()).macs
        drawn = random_plans(bench.space, bench.builder, share * dense_macs, plans, 0)
        best = max((line["now"] for line in known), default=None)
        for number, plan in enumerate(drawn[len(known) :], len(known)):
            line = one_plan(bench, plan, number, best, find_device(device), with_plain=number < plain)
            best = line["now"] if best is None else max(best, line["now"])
            line = {"network": network, "macs": share, "machine": platform.machine(), "device": device, **line}
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{network} {number + 1} of {plans}: {line['before_s']:.2f} s before, {line['now_s']:.2f} s now", flush=True)
    print("\n".join(table_of(out)))


def one_plan(
    bench: Bench, plan: ChannelPlan, number: int, best: float | None, device: torch.device, *, with_plain: bool
) -> dict[str, Any]:
    """The figures of one plan. Which way comes first alternates."""

    def before() -> dict[str, Any]:
        with computing_on(PROCESSOR):
            value, seconds = timed(lambda: bench.scored_before(bench.made(plan)), device)
        return {"before": value, "before_s": seconds}

    def now() -> dict[str, Any]:
        with computing_on(device):
            score, seconds = timed(lambda: bench.task.score_against(bench.made(plan), best), device)
        return {"now": score.value, "now_s": seconds, "images": score.images or SCORED}

    def plain() -> dict[str, Any]:
        def loop() -> float:
            module = _pruned(bench.builder, plan)
            onnxruntime.InferenceSession(_exported(module, bench.builder, dynamo=False), providers=["CPUExecutionProvider"])
            return bench.scored_before(module)

        with computing_on(PROCESSOR):
            return {"plain_s": timed(loop, device)[1]}

    ways = [before, now] if number % 2 else [now, before]
    found: dict[str, Any] = {"number": number}
    for way in (*ways, *([plain] if with_plain else [])):
        found |= way()
    return found


def timed(function: Callable[[], Answer], device: torch.device) -> tuple[Answer, float]:
    """The answer, and the processor time of this process in seconds. Beside a GPU, it is the time that passes."""
    clock = time.process_time if device == PROCESSOR else time.perf_counter
    started = clock()
    answer = function()
    return answer, round(clock() - started, 4)


def start_bench(network: str, weights: Path, data: str) -> Bench:
    """Load one network with its data."""
    if network == MOBILENET:
        return _noise_bench()
    job = Job(target="raspberrypi", model=network, weights=weights / WEIGHTS[network], data=data)
    loaded = load_model_and_task(job, profile := load_profile(job.target))
    assert isinstance(loaded.task, Classification)
    with tempfile.TemporaryDirectory() as folder, share_device(profile, print) as device:
        builder = start_building(job, loaded, Path(folder) / "dense.onnx", device)
    return _bench(loaded.task, builder)


def _noise_bench() -> Bench:
    """MobileNetV2 of torchvision with random weights on noise. Its cost does not depend on them, and its ranking says nothing."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (STATISTICS + SCORED, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(1000, (len(pixels),), generator=generator)
    train, validation = torch.arange(len(pixels)).split([STATISTICS, SCORED])
    splits = Splits.of(memory_fetch(pixels), labels, (train, validation, validation), Preprocessing(), ["one"], "noise")
    torch.manual_seed(0)
    module = torchvision.models.mobilenet_v2(weights=None).eval()
    with tempfile.TemporaryDirectory() as folder:
        example = torch.randn(1, 3, SIDE, SIDE, generator=generator)
        builder = start_builder(module, example, FileFormat(18, 9), PruningSettings(), Path(folder) / "dense.onnx")
    return _bench(Classification(splits, FinetuneSettings(recover="none"), 0), builder, reconstruct_from=64)


def _bench(task: Classification, builder: PrunedModelBuilder, reconstruct_from: int | None = None) -> Bench:
    set_folds(builder.module, find_folds(builder.module, task.inputs(2)))
    inputs: Iterator[Any] = (pixels for pixels, _ in task.calibration())
    if reconstruct_from:
        inputs = iter(task.inputs(reconstruct_from).split(16))
    return Bench(task, builder, search_space(builder, STEP), start_reconstruction(builder.module, builder.space, inputs))


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The raw lines."""
    return [json.loads(text) for text in out.read_text().splitlines()] if out.is_file() else []


def table_of(out: Path = RESULTS) -> list[str]:
    """The lines of the table."""
    made = [
        "| network | plans | before, CPU s | now, CPU s | factor | on fewer images | rank correlation | plain loop | factor |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    every = lines_of(out)
    devices = dict.fromkeys(line.get("device", "cpu") for line in every)
    for network, device in itertools.product(NETWORKS, devices):
        lines = [line for line in every if line["network"] == network and line.get("device", "cpu") == device]
        if not lines:
            continue
        before, now = ([line[f"{way}_s"] for line in lines] for way in ("before", "now"))
        plain = [line for line in lines if "plain_s" in line]
        fewer = sum(line["images"] < SCORED for line in lines)
        rank = spearmanr([line["before"] for line in lines], [line["now"] for line in lines]).statistic
        cells = [
            network if device == "cpu" else f"{network}, {device}",
            str(len(lines)),
            _cell(before),
            _cell(now),
            f"{sum(before) / sum(now):.2f}x",
            f"{fewer} of {len(lines)}",
            "weights are random" if network == MOBILENET else f"{rank:.3f}",
            _cell([line["plain_s"] for line in plain]),
            f"{sum(line['plain_s'] for line in plain) / sum(line['now_s'] for line in plain):.2f}x",
        ]
        made.append(f"| {' | '.join(cells)} |")
    return made


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
