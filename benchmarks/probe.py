"""How far the probe can be trusted. Run: python benchmarks/probe.py [--target local]

repeatability   one file is measured again and again: how much the reported p50 and p90 vary
A against A     one file against a copy of itself: how often 'faster' or 'slower' is reported wrongly
5 % slower      the same file against itself with a twentieth more work: how often 'slower' is reported
with --load     how accurate ratios are while other programs use the cores; see probe_load_table.py
agreement       the same file timed by a plain loop, and by a loop like onnxruntime's own perf test
"""

import json
import platform
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from probe_load import LOADS, THREADS, measure_all, read_lines, read_turns
from probe_load_table import table

from pipeline.core.measurement import Measurement
from pipeline.core.profile import Profile, load_profile
from pipeline.probe.interface import Graph, MeasurementOptions, Reference, Workload
from pipeline.stages.shared_device import connect

SHAPE = (1, 16, 32, 32)
INPUT = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
TURNS = 8
LAYERS = 20
"""Number of equal convolutions. One more is a twentieth more work."""

PLAIN = """
    import json, sys, time
    import numpy, onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(sys.argv[2])
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    feed = {"x": numpy.load(sys.argv[3])}
    bound = session.io_binding()
    bound.bind_cpu_input("x", feed["x"])
    bound.bind_output("y")
    run = {"loop": lambda: session.run(None, feed), "bound": lambda: session.run_with_iobinding(bound)}[sys.argv[4]]
    for _ in range(10):
        run()
    times = []
    for _ in range(320):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    print(json.dumps([float(numpy.median(times)), float(numpy.percentile(times, 90))]))
"""


@click.command()
@click.option("--target", default="local", show_default=True)
@click.option("--repeats", default=20, show_default=True, help="Measurements of one file.")
@click.option("--comparisons", default=200, show_default=True, help="Of the file with itself.")
@click.option("--slower", default=50, show_default=True, help="Comparisons with a file that is 5 % slower.")
@click.option("--load", is_flag=True, help="Ratios while other programs use the cores; nothing else.")
@click.option("--loops", type=int, multiple=True, help="With --load: measure under so many busy loops per core only; 0, 1, 3.")
@click.option("--threads", type=int, multiple=True, help="With --loops: measure with so many threads only; 1, 2.")
@click.option(
    "--turns", default=TURNS, show_default=True, help="With --load: how often every pair is measured on the quiet machine."
)
def main(target: str, repeats: int, comparisons: int, slower: int, **of_load: Any) -> None:
    """Print one table."""
    if of_load.pop("load"):
        _ratios_under_load(**of_load)
        return
    profile = load_profile(target)
    net, more = _net(LAYERS), _net(LAYERS + 1)
    print(f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, {target}, {profile.threads} threads")
    print("| what | result |\n| --- | --- |")
    print(f"| {repeats} measurements of one file | {_repeatability(profile, net, repeats)} |", flush=True)
    print(f"| compared with a plain loop and with a loop over bound inputs | {_agreement(profile, net)} |", flush=True)
    print(f"| a file against a copy of itself, {comparisons} comparisons | {_said(profile, net, net, comparisons)} |", flush=True)
    print(
        f"| a file of {LAYERS} layers against one of {LAYERS + 1}, {slower} comparisons | {_said(profile, net, more, slower)} |",
        flush=True,
    )


def _ratios_under_load(loops: tuple[int, ...], threads: tuple[int, ...], turns: int) -> None:
    """Measure what is missing, and print the table of all lines."""
    measure_all(loops or LOADS, threads or THREADS, turns)
    print("\n".join(table(read_lines(), read_turns())))


def _net(layers: int) -> Graph:
    nodes = "\n".join(f"a{n + 1} = Conv <pads=[1,1,1,1]> (a{n}, w)" for n in range(layers))
    head = '<ir_version: 8, opset_import: ["" : 17]> net (float[1,16,32,32] x) => (float[1,16,32,32] y)'
    text = f"{head} {{ a0 = Relu (x) {nodes} y = Relu (a{layers}) }}"
    model = onnx.parser.parse_model(text)
    weights = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32) / np.float32(12)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return Graph(model.SerializeToString(), f"{layers} layers")


def _repeatability(profile: Profile, net: Graph, repeats: int) -> str:
    probe = connect(profile, None)
    p50, p90 = [], []
    try:
        for _ in range(repeats):
            found = probe.measure(
                net, MeasurementOptions(profile.probe.final_processes, memory=False), Workload(reference=False, inputs=INPUT)
            )
            if isinstance(found, Measurement) and found.latency_p90_ms:
                p50.append(found.latency_p50_ms.value)
                p90.append(found.latency_p90_ms.value)
    finally:
        probe.close()
    return f"p50 {_spread(p50)}; p90 {_spread(p90)}"


def _spread(values: list[float]) -> str:
    middle, low, high = np.median(values), np.min(values), np.max(values)
    inner = np.subtract(*np.percentile(values, [75, 25])) / middle
    return f"{middle:.3f} ms ({low:.3f} to {high:.3f}, middle half {100 * inner:.1f} %)"


def _said(profile: Profile, first: Graph, other: Graph, count: int) -> str:
    """How often each answer came, and the median of the ratio."""
    said = {"faster": 0, "slower": 0, "undecided": 0}
    ratios = []
    probe = connect(profile, Reference(first, INPUT))
    try:
        for _ in range(count):
            found = probe.measure(other, MeasurementOptions(profile.probe.final_processes, memory=False))
            ratio = found.relative_p50 if isinstance(found, Measurement) else None
            if ratio:
                said["faster" if ratio.high < 1 else "slower" if ratio.low > 1 else "undecided"] += 1
                ratios.append(ratio.value)
    finally:
        probe.close()
    middle, low, high = np.median(ratios), np.min(ratios), np.max(ratios)
    return ", ".join(f"{word} {times}" for word, times in said.items()) + f"; ratio {middle:.3f} ({low:.3f} to {high:.3f})"


def _agreement(profile: Profile, net: Graph, rounds: int = 5) -> str:
    """Times in turn: the probe, a plain loop over session.run, and a loop over bound inputs like the runtime's own perf test."""
    probe = connect(profile, None)
    found: dict[str, list[float]] = {"probe": [], "loop": [], "bound": []}
    with tempfile.TemporaryDirectory() as folder:
        model, inputs = Path(folder, "net.onnx"), Path(folder, "x.npy")
        model.write_bytes(net.data)
        np.save(inputs, INPUT)
        try:
            for _ in range(rounds):
                measured = probe.measure(net, MeasurementOptions(1, memory=False), Workload(reference=False, inputs=INPUT))
                if isinstance(measured, Measurement):
                    found["probe"].append(measured.latency_p50_ms.value)
                for way in ("loop", "bound"):
                    command = [sys.executable, "-c", textwrap.dedent(PLAIN), str(model), str(profile.threads), str(inputs), way]
                    found[way].append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0])
        finally:
            probe.close()
    ratios = {way: np.median(found["probe"]) / np.median(found[way]) for way in ("loop", "bound")}
    return f"p50 of the probe is {100 * ratios['loop']:.1f} % of a plain loop's, {100 * ratios['bound']:.1f} % of a bound one's"


if __name__ == "__main__":
    main()
