"""How much faster a vision transformer becomes when heads, MLP widths and the embedding are pruned.

Run: python benchmarks/attention.py

For each network, the groups of channels are counted, and four plans are measured: every group at the same share with about half
of the MACs, and half of one kind of group at a time. The pruned file and the dense file are timed in turn. Each measured plan is
one raw line in results/attention.jsonl. A plan that has a line is not measured again, so an interrupted run continues. --table
prints the tables of docs/benchmarks/attention.md from the raw lines.
"""

import datetime
import importlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import torchvision
from coverage_networks import randomise
from torch import nn

from pipeline.core.measurement import Measurement
from pipeline.core.plan import ChannelPlan, Group
from pipeline.core.profile import Profile, load_profile
from pipeline.core.statistics import Estimate
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.search.problem import SearchSpace
from pipeline.stages.prepare import file_format
from pipeline.stages.probe_adapter import graph_of, reference_of
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import connect, share_device
from pipeline.system.versions import installed_versions

RESULTS = Path(__file__).with_name("results") / "attention.jsonl"
SIDE = 224
"""Height and width of the input image, in pixels."""
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit_b_16": lambda: torchvision.models.vit_b_16(weights=None),
    "deit_small_patch16_224": lambda: importlib.import_module("timm").create_model("deit_small_patch16_224"),
    "swin_t": lambda: torchvision.models.swin_t(weights=None),
}
KINDS = ("heads", "MLP", "embedding")
UNIFORM = "all groups"
PLANS = (UNIFORM, *KINDS)
"""All groups at one share with about half of the MACs, and half of one kind of group."""
HALF = 0.5
SHARES = 101
"""Number of uniform plans of which the one nearest to half of the MACs is taken."""
GOAL = 0.6
"""Smallest share of the MAC speed-up that the latency must show."""

Line = dict[str, Any]


@click.command()
@click.option("--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)), help="[default: all]")
@click.option("--plan", "plans", multiple=True, type=click.Choice(PLANS), help="[default: all]")
@click.option("--target", default="raspberrypi", show_default=True)
@click.option("--processes", type=int, help="That time each plan.  [default: the profile's for final measurements]")
@click.option("--table", is_flag=True, help="Measure nothing; print the tables.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Raw lines.  [default: those in results/]")
def main(
    networks: tuple[str, ...], plans: tuple[str, ...], target: str, processes: int | None, table: bool, results: Path
) -> None:
    """Measure the plans that have no raw line, and print the tables."""
    warnings.simplefilter("ignore")
    profile = load_profile(target)
    for network in () if table else networks or NETWORKS:
        known = {line["plan"] for line in lines_of(results) if (line["network"], line["target"]) == (network, target)}
        missing = [plan for plan in plans or PLANS if plan not in known]
        if missing:
            _measure(network, missing, profile, {"target": target, "processes": processes}, results)
    print(page_tables(lines_of(results)))


def lines_of(results: Path) -> list[Line]:
    """The raw lines; none if there is no file."""
    return [json.loads(text) for text in results.read_text().splitlines()] if results.is_file() else []


def _measure(network: str, plans: Sequence[str], profile: Profile, asked: Line, results: Path) -> None:
    builder = _builder(network, profile)
    space = search_space(builder, int(profile.runtime.channel_step) if profile.runtime.channel_step != "measured" else 4)
    dense = builder.make(space.dense())
    processes = asked["processes"] or profile.probe.final_processes
    probe = connect(profile, reference_of(builder))
    try:
        for name in plans:
            plan = _uniform(builder, space, dense.macs) if name == UNIFORM else half_of(builder, space, name)
            pruned = builder.make(plan)
            facts = {
                "network": network,
                "plan": name,
                "target": asked["target"],
                "processes": processes,
                "groups": groups_of(builder.space.groups),
                "kept": kept_of(builder.space.groups, plan),
                "dense_macs": dense.macs,
                "macs": pruned.macs,
                "dense_params": dense.params,
                "params": pruned.params,
                "module": builder.network.origin,
                **_timed(probe, graph=pruned, processes=processes),
                **installed_versions(("torch", "onnxruntime")),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            }
            with results.open("a") as file:
                file.write(json.dumps(facts) + "\n")
            print(f"{network}, {name}: {_row(facts)}", flush=True)
    finally:
        probe.close()


def _builder(network: str, profile: Profile) -> PrunedModelBuilder:
    torch.manual_seed(0)
    module = NETWORKS[network]().eval()
    randomise(module)
    with share_device(profile, print) as device, tempfile.TemporaryDirectory() as folder:
        form = file_format(device, ask=True)
        return start_builder(module, torch.randn(1, 3, SIDE, SIDE), form, PruningSettings(), Path(folder, "dense.onnx"))


def _uniform(builder: PrunedModelBuilder, space: SearchSpace, dense_macs: int) -> ChannelPlan:
    """The uniform plan whose MACs are nearest to half of the dense network's."""
    plans = {space.uniform(number / (SHARES - 1)) for number in range(SHARES)}
    return min(plans, key=lambda plan: (abs(builder.make(plan).macs / dense_macs - HALF), plan.widths))


def half_of(builder: PrunedModelBuilder, space: SearchSpace, kind: str) -> ChannelPlan:
    """Half of the channels of the groups of one kind; all channels of the others."""
    kinds = {group.name: kind_of(group) for group in builder.space.groups}
    return space.plan([HALF if kinds[choice.name] == kind else 1.0 for choice in space.choices])


def _timed(probe: Probe, *, graph: Any, processes: int) -> Line:
    found = probe.measure(graph_of(graph), MeasurementOptions(processes, memory=False))
    if not isinstance(found, Measurement) or not found.relative_p50 or not found.reference_p50_ms:
        raise click.ClickException(f"{found.kind}: {found.detail}" if not isinstance(found, Measurement) else "no clean runs")
    return {
        "dense_ms": vars(found.reference_p50_ms),
        "latency_ms": vars(found.latency_p50_ms),
        "ratio": vars(found.relative_p50),
        "doubts": [remark.text for remark in found.doubts],
        "machine": found.fingerprint.machine,
        "stamp": found.fingerprint.stamp,
    }


def kind_of(group: Group) -> str:
    """The kind of a group: heads leave with several outputs each, the width of an MLP belongs to three tensors (weight, bias,
    and the weight that reads it), and the embedding belongs to every layer on the residual stream.
    """
    if group.bundle > 1:
        return "heads"
    return "MLP" if len(group.slots) == 3 else "embedding"


def groups_of(groups: Iterable[Group]) -> dict[str, list[list[int]]]:
    """Kind -> (number of groups, channels, outputs per channel) of its different groups, in the order of the network."""
    found: dict[str, dict[tuple[int, int], int]] = {kind: {} for kind in KINDS}
    for group in groups:
        same = found[kind_of(group)]
        same[group.channels, group.bundle] = same.get((group.channels, group.bundle), 0) + 1
    return {kind: [[count, *size] for size, count in same.items()] for kind, same in found.items()}


def kept_of(groups: Iterable[Group], plan: ChannelPlan) -> dict[str, list[list[int]]]:
    """Kind -> (kept channels, all channels) of its different groups, in the order of the network."""
    found: dict[str, dict[tuple[int, int], None]] = {kind: {} for kind in KINDS}
    for group in groups:
        found[kind_of(group)][plan[group.name], group.channels] = None
    return {kind: [list(pair) for pair in pairs] for kind, pairs in found.items()}


def page_tables(lines: Sequence[Line]) -> str:
    """The tables of the page, from the raw lines. The last line of a plan counts."""
    last = {(line["network"], line["plan"]): line for line in lines}
    shown = [last[network, plan] for network in NETWORKS for plan in PLANS if (network, plan) in last]
    parts = [
        "| network | heads: groups x heads | MLP: groups x width | embedding: groups x width |",
        "| --- | --- | --- | --- |",
        *(_groups_row(line) for line in shown if line["plan"] == UNIFORM),
        "",
        "| network | pruned | heads | MLP | embedding | MACs | fewer | dense | pruned | faster | faster / fewer |",
        "| --- | --- | --- | --- | --- | --: | --: | --: | --: | --: | --: |",
        *(_row(line) for line in shown),
        "",
        f"Measured on: {', '.join(sorted({line['machine'] for line in shown})) or 'none'}.",
    ]
    return "\n".join(parts)


def _groups_row(line: Line) -> str:
    cells = [", ".join(f"{count} x {channels}" for count, channels, _ in line["groups"][kind]) for kind in KINDS]
    cells[0] = ", ".join(f"{count} x {channels} ({bundle})" for count, channels, bundle in line["groups"]["heads"])
    return f"| {line['network']} | {' | '.join(cells)} |"


def _row(line: Line) -> str:
    kept = [", ".join(f"{left} of {whole}" for left, whole in line["kept"][kind]) for kind in KINDS]
    fewer, faster = line["dense_macs"] / line["macs"], speedup(Estimate(**line["ratio"]))
    cells = [
        line["network"],
        line["plan"],
        *kept,
        f"{100 / fewer:.1f} %",
        f"{fewer:.2f}x",
        f"{line['dense_ms']['value']:.1f} ms",
        f"{line['latency_ms']['value']:.1f} ms",
        f"{faster.value:.2f}x ({faster.low:.2f} to {faster.high:.2f})",
        f"{100 * faster.value / fewer:.0f} % ({100 * faster.low / fewer:.0f} to {100 * faster.high / fewer:.0f})"
        + (", doubtful" if line["doubts"] else ""),
    ]
    return f"| {' | '.join(cells)} |"


def speedup(ratio: Estimate) -> Estimate:
    """How many times faster a file is whose latency is `ratio` of the dense file's, with the interval of the ratio."""
    return Estimate(1 / ratio.value, 1 / ratio.high, 1 / ratio.low)


if __name__ == "__main__":
    main()
