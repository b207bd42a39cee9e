"""What bfloat16 costs or saves in training and in scoring. Run: python benchmarks/bfloat16.py

One thread, and one batch of 128 images of 32x32, forward and backward, and forward alone. Both precisions take turns. The figure
is the smallest CPU time, because other processes only add time. With `--model`, random plans of that model are scored in both
precisions on images. The output is then their rank correlation, the differences, and the CPU time of a score.
"""

import copy
import time
from pathlib import Path
from unittest.mock import patch

import click
import numpy as np
import torch
from scipy.stats import spearmanr
from scores import Bench, random_plans
from torch import nn

from models.mobilenet import mobilenet_v2
from models.resnet import resnet18, resnet20
from models.vgg import vgg16_bn
from pipeline.stages.job import Job
from pipeline.system.malloc import keep_freed_memory
from pipeline.training import bfloat16

NETWORKS = {"vgg16_bn": vgg16_bn, "resnet18": resnet18, "resnet20": resnet20, "mobilenet_v2": mobilenet_v2}


@click.command()
@click.option("--repeats", default=5)
@click.option("--model", help="Score plans of it.")
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--data", default="")
@click.option("--macs", "share", default=0.3, show_default=True, help="Share of the dense network's that a plan has.")
@click.option("--plans", default=20, show_default=True)
def main(repeats: int, model: str | None, weights: Path | None, data: str, share: float, plans: int) -> None:
    """Print one row per network, and what training and scoring would do here."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if model is not None:
        print(scored_both_ways(Job(target="raspberrypi", model=model, weights=weights, data=data), share, plans))
        return
    with bfloat16.mixed_precision(torch.device("cpu")):
        chosen = "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"
    print(f"torch {torch.__version__}; training and scoring here would use {chosen}\n")
    print("| network | training in float32, CPU ms | bfloat16 | ratio | forward alone, float32 | bfloat16 | ratio |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    images = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    for name, factory in NETWORKS.items():
        net = factory().to(memory_format=torch.channels_last)
        cells = [name]
        for training in (True, False):
            net.train(training)
            ways = [[took(net, images, enabled) for enabled in (False, True)] for _ in range(repeats)]
            whole, half = (1000 * min(column) for column in zip(*ways, strict=True))
            cells += [f"{whole:.0f}", f"{half:.0f}", f"{half / whole:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def took(net: nn.Module, images: torch.Tensor, enabled: bool) -> float:
    """CPU seconds of one training step without the optimiser's part. In evaluation mode, of the forward pass alone."""
    started = time.process_time()
    with torch.set_grad_enabled(net.training), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        answer = net(images)
    if net.training:
        answer.float().square().mean().backward()
    return time.process_time() - started


def scored_both_ways(job: Job, share: float, plans: int) -> str:
    """One row: random plans with least-squares reconstruction, scored in float32 and in bfloat16."""
    bench = Bench(job, share, "compensated", Path())
    scores, seconds = [], []
    for plan in random_plans(bench.space, bench.builder, share * bench.dense_macs, plans, seed=0):
        modules = [bench.reconstructed(plan)]
        modules.append(copy.deepcopy(modules[0]))
        for module, enabled in zip(modules, (False, True), strict=True):
            with patch.object(bfloat16, "_gains", return_value=enabled):
                started = time.process_time()
                scores.append(bench.task.score(module))
                seconds.append(time.process_time() - started)
    whole, half = np.array(scores).reshape(-1, 2).T
    slow, fast = np.median(np.array(seconds).reshape(-1, 2), 0)
    return (
        "| network | MACs | plans | scores | rank correlation | largest difference | rms | float32, CPU s | bfloat16 | ratio |\n"
        "| --- | --: | --: | --- | --: | --: | --: | --: | --: | --: |\n"
        f"| {job.model} | {share:.0%} | {plans} | {whole.min():.1f} to {whole.max():.1f} % | {spearmanr(whole, half)[0]:.3f} "
        f"| {abs(whole - half).max():.2f} | {np.sqrt(((whole - half) ** 2).mean()):.2f} "
        f"| {slow:.2f} | {fast:.2f} | {fast / slow:.2f} |"
    )


if __name__ == "__main__":
    main()
