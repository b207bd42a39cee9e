"""Whole groups or evenly: the latency of grouped convolutions with half of their channels, removed in both ways.

Run: python benchmarks/grouped.py

Weights are random, because latency does not depend on them. Each pruned file is timed in turn with the dense file.
"""

import tempfile
import warnings
from pathlib import Path

import click
import torch
import torchvision
from torch import nn

from pipeline.core.profile import load_profile
from pipeline.graph.pruned_model import start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.stages.choose_grouped import faster_grouped
from pipeline.stages.prepare import file_format
from pipeline.stages.probe_adapter import reference_of
from pipeline.stages.shared_device import connect, share_device

NETWORKS = ("resnext50_32x4d", "regnet_x_400mf")


@click.command()
@click.option("--network", "networks", multiple=True, default=NETWORKS, help="A network of torchvision.")
@click.option("--target", default="raspberrypi", help="Profile of the device.")
@click.option("--side", default=64, help="Height and width of the input image, in pixels.")
def main(networks: tuple[str, ...], target: str, side: int) -> None:
    """Measure both ways for each network, and print which is faster."""
    warnings.filterwarnings("ignore")
    profile = load_profile(target)
    for name in networks:
        torch.manual_seed(0)
        module: nn.Module = torchvision.models.get_model(name, weights=None).eval()
        with share_device(profile, print) as device, tempfile.TemporaryDirectory() as folder:
            form, example, dense = file_format(device, ask=True), torch.randn(1, 3, side, side), Path(folder, "dense.onnx")
            evenly = start_builder(module, example, form, PruningSettings(), dense)
            whole = start_builder(module, example, form, PruningSettings(grouped="whole"), dense)
        probe = connect(profile, reference_of(evenly), print)
        try:
            _, text = faster_grouped(probe, evenly, whole, profile.probe.final_processes)
            print(f"{name}, {side} px, {probe.fingerprint.machine}, {probe.fingerprint.stamp}: {text}", flush=True)
        finally:
            probe.close()


if __name__ == "__main__":
    main()
