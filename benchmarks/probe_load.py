"""Measures ratios while other programs use the cores. `benchmarks/probe.py --load` runs it.

Pairs of a network and a uniform plan are measured twice on a quiet machine, and with 1 and 3 busy loops on every core.

The *quiet ratio* of a pair is measured apart, in turns: a turn measures every pair once, with TURN_PROCESSES fresh processes, on
the quiet machine. See probe_load_table.py for how a measurement is judged against it.

Each measurement is a line of benchmarks/results/probe_load.jsonl with its raw runs, and each pair of a turn is a line of
probe_quiet_ratios.jsonl. Lines hold the time, and the load average before they were measured. Existing lines are not measured
again, and the table is made from the lines alone.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Reference
from pipeline.stages.search_space import search_space
from pipeline.stages.shared_device import connect
from pipeline.training.load import find_model

RESULTS = Path(__file__).parent / "results" / "probe_load.jsonl"
QUIET_RATIOS = RESULTS.with_name("probe_quiet_ratios.jsonl")
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
TURN_PROCESSES = 2
AGAIN = 50
"""Number of the second measurement of each pair on the quiet machine."""
_MEASUREMENT = TypeAdapter(Measurement)

Key = tuple[int, str, int, float, int]
"""Busy loops on each core, network, threads, share of kept channels, number of the repeat."""
Pair = tuple[str, int, float]
"""Network, threads, share of kept channels."""
PAIRS: tuple[Pair, ...] = tuple((name, threads, fraction) for name in NETWORKS for threads in THREADS for fraction in FRACTIONS)


def keys(load: int) -> list[Key]:
    """All measurements under one load."""
    numbers = (0,) if load else (0, AGAIN)
    pairs: list[Key] = [(load, *pair, number) for number in numbers for pair in PAIRS]
    return pairs + [(load, *SAME, number) for number in range(1, SAME_TIMES + 1)]


def measure_all(load: int, threads: Sequence[int] = THREADS) -> None:
    """Take every measurement under `load` that the results do not have yet."""
    known = {key for key, _ in read_lines()}
    missing = [key for key in keys(load) if key not in known and key[2] in threads]
    files = {name: _files(name) for name in dict.fromkeys(key[1] for key in missing)}
    with busy_loops(load):
        for name, count in dict.fromkeys((key[1], key[2]) for key in missing):
            _measure_pairs(files[name], [key for key in missing if key[1:3] == (name, count)])


def measure_turns(count: int) -> None:
    """Measure every pair on the quiet machine, in turns, until there are `count` turns."""
    known = {(turn, pair) for turn, pair, _ in read_turns()}
    files = {name: _files(name) for name in NETWORKS}
    for turn in range(count):
        missing = [pair for pair in PAIRS if (turn, pair) not in known]
        # one probe at a time, because a probe starts the processes of its next measurement after each one
        for name, threads in dict.fromkeys(pair[:2] for pair in missing):
            with _probe(files[name][1.0], name, threads) as probe:
                for pair in missing:
                    if pair[:2] == (name, threads):
                        _measure_turn(probe, files[name][pair[2]], turn, pair)


def _measure_turn(probe: Probe, file: Graph, turn: int, pair: Pair) -> None:
    before = os.getloadavg()[0]
    found = probe.measure(file, MeasurementOptions(TURN_PROCESSES, memory=False))
    if isinstance(found, Measurement) and found.relative_p50:
        ratios = statistics.process_ratios(found.samples.runs, found.samples.reference)
        line = {"turn": turn, "pair": pair, "ratio": found.relative_p50.value, "processes": ratios, "load_average": before}
        _append(QUIET_RATIOS, line)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "at": round(time.time())}, separators=(",", ":")) + "\n")


@functools.cache
def _files(name: str) -> dict[float, Graph]:
    """The ONNX files of a network's uniform plans. They are made before anything is measured."""
    torch.manual_seed(0)
    example = torch.randn(*NETWORKS[name])
    with tempfile.TemporaryDirectory() as folder:
        builder = start_builder(
            find_model(name).factory().eval(), example, FileFormat(18, 9), Ranking(), Path(folder, "dense.onnx")
        )
        space = search_space(builder, 4)
        made = {fraction: builder.make(space.uniform(fraction)) for fraction in FRACTIONS}
        return {fraction: Graph(pruned.data, pruned.structure) for fraction, pruned in made.items()}


def _measure_pairs(files: dict[float, Graph], wanted: list[Key]) -> None:
    _, name, threads, *_ = wanted[0]
    processes = _profile(threads).probe.final_processes
    with _probe(files[1.0], name, threads) as probe:
        for key in wanted:
            before, started = os.getloadavg()[0], time.monotonic()
            found = probe.measure(files[key[3]], MeasurementOptions(processes, memory=False))
            if isinstance(found, Measurement):
                facts = _MEASUREMENT.dump_python(found, mode="json")
                for process in facts["processes"]:
                    for each in ("latency_ms", "reference_latency_ms", "lost_ms", "reference_lost_ms"):
                        process[each] = [[round(run, 4) for run in block] for block in process[each]]
                seconds = round(time.monotonic() - started, 2)
                _append(RESULTS, {"key": key, "load_average": before, "seconds": seconds, "measurement": facts})
            print(key, found.relative_p50 if isinstance(found, Measurement) else found, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _probe(dense: Graph, name: str, threads: int) -> Iterator[Probe]:
    inputs = np.random.default_rng(0).standard_normal(NETWORKS[name]).astype(np.float32)
    probe = connect(_profile(threads), Reference(dense, inputs))
    try:
        yield probe
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
    lines = _lines(RESULTS)
    return [((*line["key"],), _MEASUREMENT.validate_python(line["measurement"], strict=False)) for line in lines]


def read_turns() -> list[tuple[int, Pair, float]]:
    """The turns so far: number of the turn, pair, ratio."""
    return [(line["turn"], (*line["pair"],), line["ratio"]) for line in _lines(QUIET_RATIOS)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
