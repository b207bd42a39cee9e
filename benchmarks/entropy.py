"""What the entropies cost: forward passes of the reference networks with and without them. Run: python benchmarks/entropy.py

One thread, 256 images of 32x32, the three ways in turn; CPU time, smallest of the repeats, because other processes only add.
"""

import platform
import time
from collections.abc import Callable

import click
import torch

from models.mobilenet import mobilenet_v2
from models.resnet import resnet18, resnet20
from models.vgg import vgg16_bn
from pipeline.graph.channel_entropy import start_channel_entropy
from pipeline.graph.spatial_entropy import start_spatial_entropy
from pipeline.plan import PruneSpace

NETWORKS = {"vgg16_bn": vgg16_bn, "resnet18": resnet18, "resnet20": resnet20, "mobilenet_v2": mobilenet_v2}


@click.command()
@click.option("--repeats", default=5)
def main(repeats: int) -> None:
    """Print one row per network."""
    torch.set_num_threads(1)
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
    """A forward pass alone; with the spatial entropy; with the channel entropy."""
    spatial, channels = start_spatial_entropy(net, PruneSpace(()), images), start_channel_entropy(net, images)

    def plain() -> None:
        with torch.no_grad():
            for batch in images.split(spatial.batch):
                net(batch)

    return plain, lambda: spatial.of(net, {}), lambda: channels.kept(net)


def took(do: Callable[[], object]) -> float:
    """CPU seconds."""
    started = time.process_time()
    do()
    return time.process_time() - started


if __name__ == "__main__":
    main()
