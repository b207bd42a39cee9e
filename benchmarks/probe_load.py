"""How accurate the probe's ratios are while other programs use the cores. `benchmarks/probe.py --load` runs it.

Pairs of a network and its uniform plans are measured on a quiet machine, then with 1 and with 3 busy loops on every core. Each
measurement is a line of benchmarks/results/probe_load.jsonl with its raw runs. Existing lines are not measured again, and the
table is made from the lines alone.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from pipeline.core import statistics
from pipeline.core.measurement import Measurement
from pipeline.core.opsets import FileFormat
from pipeline.core.profile import Profile, available_cores, load_profile
from pipeline.graph.importance import Ranking
from pipeline.graph.pruned_model import start_builder
from pipeline.probe.interface import Graph, MeasurementOptions, Reference
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import connect
from pipeline.training.load import find_model

RESULTS = Path(__file__).parent / "results" / "probe_load.jsonl"
NETWORKS = {
    "digits": (1, 1, 8, 8),
    "resnet20": (1, 3, 32, 32),
    "vgg16_bn": (1, 3, 32, 32),
    "torchvision:mobilenet_v2": (1, 3, 224, 224),
}
FRACTIONS = (1.0, 0.8, 0.6, 0.45, 0.3)
THREADS = (1, 2)
SAME = ("resnet20", 1, 1.0)
"""Measured against itself SAME_TIMES more times under each load."""
SAME_TIMES = 12
LOADS = (0, 1, 3)
AGAIN = 50
"""Number of the second measurement of each pair on the quiet machine. The first one is the quiet ratio."""
WRONG_LIMIT = 0.98
"""A limit of this share of the quiet ratio is violated by the file. The verdict *within* is wrong there."""
_MEASUREMENT = TypeAdapter(Measurement)

Key = tuple[int, str, int, float, int]
"""Busy loops on each core, network, threads, share of kept channels, number of the repeat."""


def keys(load: int) -> list[Key]:
    """All measurements under one load."""
    found = [(load, name, threads, fraction, 0) for name in NETWORKS for threads in THREADS for fraction in FRACTIONS]
    again = [(load, name, threads, fraction, AGAIN) for _, name, threads, fraction, _ in found] if load == 0 else []
    return found + again + [(load, *SAME, number) for number in range(1, SAME_TIMES + 1)]


def measure_all(load: int) -> None:
    """Take every measurement under `load` that the results do not have yet."""
    known = {key for key, _ in read_lines()}
    missing = [key for key in keys(load) if key not in known]
    files = {name: _files(name) for name in dict.fromkeys(key[1] for key in missing)}
    with busy_loops(load):
        for name, threads in dict.fromkeys((key[1], key[2]) for key in missing):
            _measure_pairs(files[name], [key for key in missing if key[1:3] == (name, threads)])


def _files(name: str) -> dict[float, Graph]:
    """The ONNX files of a network's uniform plans. They are made before anything is measured."""
    torch.manual_seed(0)
    example = torch.randn(*NETWORKS[name])
    with tempfile.TemporaryDirectory() as folder:
        builder = start_builder(
            find_model(name).factory().eval(), example, FileFormat(18, 9), Ranking(), Path(folder, "dense.onnx"), 0
        )
        space = search_space(builder, 4)
        made = {fraction: builder.make(space.uniform(fraction)) for fraction in FRACTIONS}
        return {fraction: Graph(pruned.data, pruned.structure) for fraction, pruned in made.items()}


def _measure_pairs(files: dict[float, Graph], wanted: list[Key]) -> None:
    inputs = np.random.default_rng(0).standard_normal(NETWORKS[wanted[0][1]]).astype(np.float32)
    profile = _profile(wanted[0][2])
    probe = connect(profile, Reference(files[1.0], inputs))
    try:
        for key in wanted:
            found = probe.measure(files[key[3]], MeasurementOptions(profile.probe.final_processes, memory=False))
            if isinstance(found, Measurement):
                facts = _MEASUREMENT.dump_python(found, mode="json")
                for process in facts["processes"]:
                    for name in ("latency_ms", "reference_latency_ms", "lost_ms", "reference_lost_ms"):
                        process[name] = [[round(run, 4) for run in block] for block in process[name]]
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "measurement": facts}, separators=(",", ":")) + "\n")
            print(key, found.relative_p50 if isinstance(found, Measurement) else found, file=sys.stderr, flush=True)
    finally:
        probe.close()


def _profile(threads: int) -> Profile:
    """This machine's profile without retries. A run would repeat an unstable measurement once."""
    profile = load_profile("local")
    changes = {
        "runtime": profile.runtime.model_copy(update={"threads": threads}),
        "probe": profile.probe.model_copy(update={"retries": 0}),
    }
    return profile.model_copy(update=changes)


@contextlib.contextmanager
def busy_loops(on_each_core: int) -> Iterator[None]:
    """Run `on_each_core` endless programs on each core, and always end them."""
    program = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"
    loops = [
        subprocess.Popen([sys.executable, "-c", program, str(core)]) for core in available_cores() for _ in range(on_each_core)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def read_lines() -> list[tuple[Key, Measurement]]:
    """The measurements so far."""
    if not RESULTS.is_file():
        return []
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return [((*line["key"],), _MEASUREMENT.validate_python(line["measurement"], strict=False)) for line in lines]


def table(lines: list[tuple[Key, Measurement]]) -> list[str]:
    """One row for each load and number of threads."""
    found = dict(lines)
    rows = [
        "| loops | threads | pairs | quiet ratio inside | undecided | outside | wrong *within* | A/A alarms | width | all runs |",
        "| --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for load in LOADS:
        for threads in THREADS:
            row = _row({key: each for key, each in found.items() if key[0] == load and key[2] == threads}, found)
            rows.append(f"| {load} | {threads} | {row} |")
    return rows


def _row(cells: dict[Key, Measurement], found: dict[Key, Measurement]) -> str:
    inside = undecided = outside = wrong = pairs = alarms = same = 0
    widths: list[float] = []
    plain: list[float] = []
    for (load, name, threads, fraction, number), measured in cells.items():
        ratio, quiet = measured.relative_p50, found.get((0, name, threads, fraction, 0))
        if ratio is None or quiet is None or quiet.relative_p50 is None:
            continue
        if fraction == 1.0:
            same += 1
            alarms += not measured.doubts and not ratio.low <= 1 <= ratio.high
        if number != (0 if load else AGAIN):
            continue
        pairs += 1
        if measured.doubts:
            undecided += 1
            continue
        widths.append((ratio.high - ratio.low) / ratio.value)
        every = statistics.ratio_estimate(*_blocks(measured), statistics.MEDIAN)
        if every:
            plain.append((every.high - every.low) / every.value)
        truth = quiet.relative_p50
        overlaps = ratio.low <= truth.value <= ratio.high
        inside += overlaps
        outside += not overlaps
        wrong += ratio.high <= WRONG_LIMIT * truth.value
    shown = [f"{100 * sorted(each)[len(each) // 2]:.1f} %" if each else "" for each in (widths, plain)]
    return f"{pairs} | {inside} | {undecided} | {outside} | {wrong} | {alarms} of {same} | {shown[0]} | {shown[1]}"


def _blocks(measured: Measurement) -> tuple[statistics.Blocks, statistics.Blocks]:
    """Every timed run of the file and of the reference, whoever disturbed it."""
    processes = measured.processes
    return tuple(each.latency_ms for each in processes), tuple(each.reference_latency_ms for each in processes)


def facts(lines: list[tuple[Key, Measurement]]) -> dict[str, Any]:
    """Facts about the machine that measured."""
    return asdict(lines[0][1].fingerprint) if lines else {}
