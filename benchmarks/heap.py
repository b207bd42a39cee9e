"""What keeping freed memory saves. Run: python benchmarks/heap.py

The forward passes of a candidate's scoring (BatchNorm re-estimated on 512 images of 32x32, then 512 answered) in one thread, and
one training step on 128 images. Both ways run in turn in fresh processes, because keeping memory cannot be undone. CPU time
includes the kernel's, which zeroes pages. Times and peaks are the smallest of the rounds, because other processes only add.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import click
import torch
from torch import nn

from models.mobilenet import mobilenet_v2
from models.resnet import resnet18, resnet20
from models.vgg import vgg16_bn
from pipeline.system.malloc import keep_freed_memory
from pipeline.training.scoring import recalibrate

NETWORKS = {"vgg16_bn": vgg16_bn, "resnet18": resnet18, "resnet20": resnet20, "mobilenet_v2": mobilenet_v2}


@click.command()
@click.option("--rounds", default=2)
@click.option("--one", type=(str, bool), hidden=True, help="Of the fresh process: the network, and whether memory is kept.")
def main(rounds: int, one: tuple[str, bool] | None) -> None:
    """Print one row per network."""
    if one:
        print(json.dumps(costs(*one)))
        return
    print(f"torch {torch.__version__}\n\n| network | scoring, CPU s | kept | training, CPU s | kept | peak MiB | kept |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for name in NETWORKS:
        pairs = [(fresh(name, kept=False), fresh(name, kept=True)) for _ in range(rounds)]
        best = [
            min(each)
            for ways in zip(*(zip(*pair, strict=True) for pair in pairs), strict=True)
            for each in zip(*ways, strict=True)
        ]
        print(f"| {name} | {' | '.join(f'{cost:.2f}' for cost in best[:4])} | {best[4]:.0f} | {best[5]:.0f} |", flush=True)


def fresh(name: str, *, kept: bool) -> list[float]:
    """`costs` in a process of its own."""
    asked = subprocess.run([sys.executable, __file__, "--one", name, str(kept)], check=True, capture_output=True, text=True)
    found: list[float] = json.loads(asked.stdout)
    return found


def costs(name: str, kept: bool) -> tuple[float, float, float]:
    """CPU seconds of scoring and of a training step, and peak memory in MiB."""
    torch.set_num_threads(1)
    if kept:
        keep_freed_memory()
    net = NETWORKS[name]().to(memory_format=torch.channels_last)
    images = torch.randn(512, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    scoring, training = took(score, net, images), took(train, net, images[:128])
    return scoring, training, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def score(net: nn.Module, images: torch.Tensor) -> None:
    """Run the forward passes of a candidate's scoring."""
    recalibrate(net, images.split(256))
    with torch.inference_mode():
        for pixels in images.split(256):
            net(pixels.to(memory_format=torch.channels_last))


def train(net: nn.Module, images: torch.Tensor) -> None:
    """Run a training step without the optimiser's part."""
    net.train()
    net(images.to(memory_format=torch.channels_last)).square().mean().backward()


def took(do: Callable[[nn.Module, torch.Tensor], None], net: nn.Module, images: torch.Tensor) -> float:
    """CPU seconds, the smaller of two runs, after a warm-up run."""
    do(net, images)
    seconds = []
    for _ in range(2):
        started = time.process_time()
        do(net, images)
        seconds.append(time.process_time() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
