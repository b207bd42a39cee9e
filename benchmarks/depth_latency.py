"""Depth beside width: how much of the saved arithmetic becomes speed when blocks are dropped, and when channels are removed.

Run: python benchmarks/depth_latency.py --out latency.jsonl

Uniform plans of the reference networks are timed in turn with the dense file. Weights play no part in latency. Each plan is one
line of the file. A plan that is there already is not measured again.
"""

import json
import tempfile
import warnings
from pathlib import Path

import click
import torch

from pipeline.core.measurement import Failure
from pipeline.core.profile import load_profile
from pipeline.core.restriction import Restriction
from pipeline.graph.pruned_model import start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.interface import MeasurementOptions
from pipeline.stages.prepare import file_format
from pipeline.stages.probe_adapter import graph_of, reference_of
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import connect, share_device
from pipeline.training.load import find_model

NETWORKS = ("resnet20", "resnet56")
PLANS = ((0.7, 1.0), (0.5, 1.0), (1.0, 0.5), (1.0, 0.25), (0.7, 0.7))
"""(share of the channels, share of the blocks)"""


@click.command()
@click.option("--network", "networks", multiple=True, default=NETWORKS, help="A network of models/ for images of 32 pixels.")
@click.option("--target", default="raspberrypi", help="Profile of the device.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File of JSON lines; made, or continued.")
def main(networks: tuple[str, ...], target: str, out: Path) -> None:
    """Measure each plan that is not in the file yet, and print all of them."""
    warnings.filterwarnings("ignore")
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.is_file() else []
    known = {(line["network"], line["width"], line["depth"]) for line in lines}
    for name in networks:
        if all((name, *plan) in known for plan in PLANS):
            continue
        lines += _measured(name, target, [plan for plan in PLANS if (name, *plan) not in known], out)
    for line in lines:
        share, low, high = line["latency"]
        kept = f"{line['network']}, {line['width']:.0%} of the channels and {line['depth']:.0%} of the blocks"
        figures = f"MACs {line['macs']:.1%}, latency {share:.1%} [{low:.1%}, {high:.1%}]"
        print(f"{kept}: {figures}, speed-up over MAC reduction {line['macs'] / share:.2f}; {line['machine']}")


def _measured(name: str, target: str, plans: list[tuple[float, float]], out: Path) -> list[dict[str, object]]:
    profile = load_profile(target)
    torch.manual_seed(0)
    example, settings = torch.randn(1, 3, 32, 32), PruningSettings(restriction=Restriction(depth=True))
    with share_device(profile, print) as device, tempfile.TemporaryDirectory() as folder:
        form = file_format(device, ask=True)
        builder = start_builder(find_model(name).factory(10).eval(), example, form, settings, Path(folder, "dense.onnx"))
    space, lines = search_space(builder, 4), []
    dense = builder.make(space.dense())
    probe = connect(profile, reference_of(builder), print)
    try:
        for width, depth in plans:
            pruned = builder.make(space.uniform(width, depth))
            found = probe.measure(graph_of(pruned), MeasurementOptions(profile.probe.final_processes, memory=False))
            if isinstance(found, Failure) or found.relative_p50 is None:
                raise click.ClickException(f"{name}: {found.detail if isinstance(found, Failure) else 'it has no reference'}")
            ratio = found.relative_p50
            lines.append(
                {
                    "network": name,
                    "width": width,
                    "depth": depth,
                    "dropped": list(pruned.plan.dropped),
                    "macs": pruned.macs / dense.macs,
                    "latency": [ratio.value, ratio.low, ratio.high],
                    "doubts": [doubt.text for doubt in found.doubts],
                    "machine": f"{probe.fingerprint.machine}, {probe.fingerprint.stamp}",
                }
            )
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    finally:
        probe.close()
    return lines


if __name__ == "__main__":
    main()
