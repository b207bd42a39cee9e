"""What bfloat16 costs or gains in training. Run: python benchmarks/bfloat16.py

One thread, one batch of 128 images of 32x32 forward and backward, the two ways in turn; CPU time, smallest of the repeats,
because other processes only add.
"""

import time

import click
import torch
from torch import nn

from models.mobilenet import mobilenet_v2
from models.resnet import resnet20
from models.vgg import vgg16_bn
from pipeline.finetune import mixed_precision

NETWORKS = {"vgg16_bn": vgg16_bn, "resnet20": resnet20, "mobilenet_v2": mobilenet_v2}


@click.command()
@click.option("--repeats", default=5)
def main(repeats: int) -> None:
    """Print one row per network, and what fine-tuning would do here."""
    torch.set_num_threads(1)
    with mixed_precision(torch.device("cpu")):
        chosen = "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"
    print(f"torch {torch.__version__}; fine-tuning here would use {chosen}\n")
    print("| network | float32, CPU ms | bfloat16, CPU ms | ratio |\n| --- | --: | --: | --: |")
    images = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    for name, factory in NETWORKS.items():
        net = factory().to(memory_format=torch.channels_last).train()
        seconds = [(took(net, images, enabled=False), took(net, images, enabled=True)) for _ in range(repeats)]
        whole, half = (1000 * min(column) for column in zip(*seconds, strict=True))
        print(f"| {name} | {whole:.0f} | {half:.0f} | {half / whole:.2f} |", flush=True)


def took(net: nn.Module, images: torch.Tensor, *, enabled: bool) -> float:
    """CPU seconds of one step but the optimiser's."""
    started = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        answer = net(images)
    answer.float().square().mean().backward()
    return time.process_time() - started


if __name__ == "__main__":
    main()
