"""What a candidate costs on its way to the device over a slow link. Run: python benchmarks/link.py

The device is a real OpenSSH server on the loopback interface, behind a relay with limited bandwidth. For each network, plans at
random widths are sent in two ways in turn, over one connection:

  whole files   the ONNX file
  weight slices as the probe does: the base weights once, then the weight slices of each candidate

A third way is computed from the first: the files compressed with zlib at level 1, with the compression time here, but without the
decompression there. Seconds include everything except timed runs: making the file or the slices, sending, and sessions in fresh
processes. Between two candidates is a pause, as for scoring; the next candidate's processes start in it.
"""

import platform
import shutil
import statistics
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch

from pipeline.core.measurement import Measurement
from pipeline.core.opsets import FileFormat
from pipeline.graph.pruned_model import PrunedModel, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.interface import Graph, MeasurementOptions, Reference
from pipeline.probe.ssh import SshProbe
from pipeline.stages.search_space import search_space
from pipeline.training.load import find_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from helpers.sshd import SSHD, Board  # noqa: E402

NETWORKS = ("vgg16_bn", "resnet18")
SIDE = 32
OPTIONS = MeasurementOptions(2, memory=False, fresh=False)


@dataclass
class Way:
    """Figures of one way, with one entry per candidate."""

    traffic_bytes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Costs:
    """Costs of one network."""

    whole: Way = field(default_factory=Way)
    compressed: Way = field(default_factory=Way)
    slices: Way = field(default_factory=Way)
    dense_bytes: int = 0
    base_bytes: int = 0
    base_s: float = 0.0


@click.command()
@click.option("--candidates", default=5, show_default=True, help="Per network.")
@click.option("--mbit", default=10.0, show_default=True, help="A second, in each direction.")
@click.option("--pause", default=3.0, show_default=True, help="Seconds between two candidates.")
@click.option("--seed", default=0, show_default=True)
def main(candidates: int, mbit: float, pause: float, seed: int) -> None:
    """Print a table of medians with the smallest and the largest figure."""
    if SSHD is None:
        raise click.ClickException("no OpenSSH server here: apt-get install openssh-server")
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, {mbit:g} Mbit/s, {candidates} candidates, seed {seed}\n")
    print("| network | way | bytes per candidate | seconds per candidate, without timed runs | once |")
    print("| --- | --- | --: | --: | --: |")
    for name in NETWORKS:
        torch.manual_seed(seed)
        costs = measure(name, candidates, 1e6 * mbit, pause, seed)
        once = f"{_megabytes(costs.dense_bytes)} (dense graph)"
        base = f"{_megabytes(costs.base_bytes)} (weights), {costs.base_s:.0f} s"
        for way, what, first in (
            ("whole files", costs.whole, once),
            ("whole files, zlib (computed)", costs.compressed, ""),
            ("weight slices", costs.slices, base),
        ):
            sizes, seconds = _cell([size / 1e3 for size in what.traffic_bytes], "kB", 0), _cell(what.seconds, "s", 2)
            print(f"| {name} | {way} | {sizes} | {seconds} | {first} |", flush=True)


def measure(name: str, candidates: int, bits_per_s: float, pause_s: float, seed: int) -> Costs:
    """Measure candidates in both ways, in turn. The order alternates."""
    folder = Path(tempfile.mkdtemp(prefix="link-"))
    example = torch.randn(1, 3, SIDE, SIDE)
    module = find_model(name).factory().eval()
    builder = start_builder(module, example, FileFormat(18, 9), PruningSettings(), folder / "dense.onnx")
    space = search_space(builder, 4)
    board = Board(folder / "board")
    relay = f"{sys.executable} {HERE / 'relay.py'} %h %p {bits_per_s}"
    board.config.write_text(board.config.read_text() + f"  ProxyCommand {relay}\n  CheckHostIP no\n")
    board.start()
    dense = builder.make(space.dense())
    probe = SshProbe(board.profile(runs=64, block_runs=8), Reference(_graph_of(dense), example.numpy()))
    costs = Costs(dense_bytes=len(dense.data))
    generator = np.random.default_rng(seed)
    try:
        before = probe.traffic_bytes
        costs.base_s = _seconds(probe, _graph_of(dense))
        costs.base_bytes = probe.traffic_bytes - before
        for number in range(candidates):
            plan = space.plan(generator.uniform(0.2, 0.9, len(space.choices)).tolist())
            for whole in (True, False) if number % 2 else (False, True):
                time.sleep(pause_s)
                before, started = probe.traffic_bytes, time.perf_counter()
                pruned = builder.make(plan)
                graph = Graph(pruned.data, pruned.structure) if whole else _graph_of(pruned)
                made_s = time.perf_counter() - started
                way = costs.whole if whole else costs.slices
                way.seconds.append(made_s + _seconds(probe, graph))
                way.traffic_bytes.append(probe.traffic_bytes - before)
            _compress(builder.make(plan).data, costs, bits_per_s)
    finally:
        probe.close()
        board.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return costs


def _graph_of(pruned: PrunedModel) -> Graph:
    return Graph(lambda: pruned.data, pruned.structure, None, pruned.weight_slices)


def _seconds(probe: SshProbe, graph: Graph) -> float:
    """Seconds of one measurement, without the timed runs."""
    started = time.perf_counter()
    measured = probe.measure(graph, OPTIONS)
    seconds = time.perf_counter() - started
    if not isinstance(measured, Measurement):
        raise click.ClickException(f"{measured.kind}: {measured.detail}")
    timed_ms = max(p.first_run_ms for p in measured.processes) + sum(p.timed_ms for p in measured.processes)
    return seconds - timed_ms / 1e3


def _compress(data: bytes, costs: Costs, bits_per_s: float) -> None:
    """Add the costs of the last whole file if it had been sent compressed."""
    started = time.perf_counter()
    saved = len(data) - len(zlib.compress(data, 1))
    spent_s = time.perf_counter() - started
    costs.compressed.traffic_bytes.append(costs.whole.traffic_bytes[-1] - saved)
    costs.compressed.seconds.append(costs.whole.seconds[-1] + spent_s - 8 * saved / bits_per_s)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _cell(values: list[float], unit: str, digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} {unit} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
