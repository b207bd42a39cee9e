"""What the entropies cost: forward passes of the reference networks with and without them. Run: python benchmarks/entropy.py

One thread and 256 images of 32x32. Three ways take turns. Figures are the smallest CPU times, because other processes only add.
With `--model`, random plans of that model are scored as in a search, and the time that their entropies add is shown.
"""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from scores import Bench, random_plans

from models.mobilenet import mobilenet_v2
from models.resnet import resnet18, resnet20
from models.vgg import vgg16_bn
from pipeline.core.plan import PruneSpace
from pipeline.graph.channel_entropy import start_channel_entropy
from pipeline.graph.spatial_entropy import start_spatial_entropy
from pipeline.stages.job import Job
from pipeline.stages.reward import ENTROPY_INPUTS
from pipeline.system.malloc import keep_freed_memory

NETWORKS = {"vgg16_bn": vgg16_bn, "resnet18": resnet18, "resnet20": resnet20, "mobilenet_v2": mobilenet_v2}


@click.command()
@click.option("--repeats", default=5)
@click.option("--model", help="Score plans of it.")
@click.option("--weights", type=click.Path(path_type=Path))
@click.option("--data", default="")
@click.option("--macs", "share", default=0.3, show_default=True, help="Share of the dense network's that a plan has.")
@click.option("--plans", default=10, show_default=True)
def main(repeats: int, model: str | None, weights: Path | None, data: str, share: float, plans: int) -> None:
    """Print one row per network."""
    torch.set_num_threads(1)
    if model is not None:
        print(beside_scores(Job(target="raspberrypi", model=model, weights=weights, data=data), share, plans))
        return
    print(
        f"{platform.machine()}, torch {torch.__version__}\n\n| network | forward, CPU ms | spatial | ratio | channels | ratio |"
    )
    print("| --- | --: | --: | --: | --: | --: |")
    images = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, factory in NETWORKS.items():
        net = factory().eval()
        ways = ways_of(net, images)
        rounds = [[took(way) for way in ways] for _ in range(repeats)]
        plain, spatial, channels = (1000 * min(column) for column in zip(*rounds, strict=True))
        print(
            f"| {name} | {plain:.0f} | {spatial:.0f} | {spatial / plain:.2f} | {channels:.0f} | {channels / plain:.2f} |",
            flush=True,
        )


def ways_of(net: torch.nn.Module, images: torch.Tensor) -> tuple[Callable[[], object], ...]:
    """Three functions: a forward pass alone, one with the spatial entropy, one with the channel entropy."""
    spatial, channels = start_spatial_entropy(net, PruneSpace(()), images), start_channel_entropy(net, images)

    def plain() -> None:
        with torch.no_grad():
            for batch in images.split(spatial.batch):
                net(batch)

    return plain, lambda: spatial.of(net, {}), lambda: channels.kept(net)


def beside_scores(job: Job, share: float, plans: int) -> str:
    """One row: the time that entropies add to a candidate's score. Smallest, median and largest over plans."""
    keep_freed_memory()
    bench = Bench(job, share, "compensated", Path())
    seconds = []
    for plan in random_plans(bench.space, bench.builder, share * bench.dense_macs, plans, seed=0):
        module = bench.reconstructed(plan)
        seconds.append([took(look) for look in bench.looks(plan, module)])
    score, spatial, channels = np.array(seconds).T
    cells = [f"{np.median(spent):.2f}" for spent in (score, spatial, channels)]
    cells += [
        f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})"
        for ratio in (1 + spatial / score, 1 + channels / score)
    ]
    return (
        "| network | MACs | plans | images | score, CPU s | spatial | channels | with spatial | with channels |\n"
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |\n"
        f"| {job.model} | {share:.0%} | {plans} | {ENTROPY_INPUTS} | {' | '.join(cells)} |"
    )


def took(do: Callable[[], object]) -> float:
    """CPU seconds of `do`."""
    started = time.process_time()
    do()
    return time.process_time() - started


if __name__ == "__main__":
    main()
