"""What the entropy reward costs: forward passes of the reference networks with and without it. Run: python benchmarks/entropy.py

One thread, 256 images of 32x32, the two ways in turn; CPU time, smallest of the repeats, because other processes only add.
"""

import platform
import time
from collections.abc import Callable

import click
import torch

from models.mobilenet import mobilenet_v2
from models.resnet import resnet18, resnet20
from models.vgg import vgg16_bn
from pipeline.graph.entropy import ActivationEntropy, start_entropy
from pipeline.plan import PruneSpace

NETWORKS = {"vgg16_bn": vgg16_bn, "resnet18": resnet18, "resnet20": resnet20, "mobilenet_v2": mobilenet_v2}


@click.command()
@click.option("--repeats", default=5)
def main(repeats: int) -> None:
    """Print one row per network."""
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}\n\n| network | forward, CPU ms | with entropy, CPU ms | ratio |")
    print("| --- | --: | --: | --: |")
    images = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name, factory in NETWORKS.items():
        net = factory().eval()
        meter = start_entropy(net, PruneSpace(()), images)

        def plain(net: torch.nn.Module = net, meter: ActivationEntropy = meter) -> None:
            with torch.no_grad():
                for batch in images.split(meter.batch):
                    net(batch)

        def measured(net: torch.nn.Module = net, meter: ActivationEntropy = meter) -> None:
            meter.of(net, {})

        seconds = [(took(plain), took(measured)) for _ in range(repeats)]
        without, together = (1000 * min(column) for column in zip(*seconds, strict=True))
        print(f"| {name} | {without:.0f} | {together:.0f} | {together / without:.2f} |", flush=True)


def took(do: Callable[[], None]) -> float:
    """CPU seconds."""
    started = time.process_time()
    do()
    return time.process_time() - started


if __name__ == "__main__":
    main()
