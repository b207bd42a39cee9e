"""Measures ratios while other programs use the cores. `benchmarks/probe.py --load` runs it.

Pairs of a network and a uniform plan are measured twice on a quiet machine, and twice with 1 and with 3 busy loops on every core.

The *quiet ratio* of a pair is measured in turns: a turn measures every pair once, with TURN_PROCESSES fresh processes, on the
quiet machine. Turns lie before, between and after the measurements, because the ratio of a pair changes over hours. See
probe_load_table.py for how a measurement is judged against it.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from pipeline.core import statistics
from pipeline.core.measurement import Measurement
from pipeline.core.opsets import FileFormat
from pipeline.core.profile import Profile, available_cores, load_profile
from pipeline.graph.pruned_model import start_builder
from pipeline.graph.settings import PruningSettings
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
"""Number of the second measurement of each pair."""
_MEASUREMENT = TypeAdapter(Measurement)

Key = tuple[int, str, int, float, int]
"""Busy loops on each core, network, threads, share of kept channels, number of the repeat."""
Pair = tuple[str, int, float]
"""Network, threads, share of kept channels."""
PAIRS: tuple[Pair, ...] = tuple((name, threads, fraction) for name in NETWORKS for threads in THREADS for fraction in FRACTIONS)


def keys(load: int, number: int) -> list[Key]:
    """All first (`number` is 0) or second measurements under one load."""
    same = [(load, *SAME, each) for each in range(1, SAME_TIMES + 1)]
    return [(load, *pair, number) for pair in PAIRS] + (same if number == AGAIN else [])


def measure_all(loads: Sequence[int], threads: Sequence[int], turns: int) -> None:
    """Take every measurement that the results do not have yet, with `turns` turns before, between and after them."""
    known = {line.key for line in read_lines()}
    wanted = [[key for key in keys(load, number) if key[2] in threads] for number in (0, AGAIN) for load in loads]
    rounds = [missing for keys_of_round in wanted if (missing := [key for key in keys_of_round if key not in known])]
    for place, missing in enumerate(rounds):
        _measure_turns(max(1, turns - len(rounds)) if place == 0 else 1)
        _measure_round(missing)
    if rounds:
        _measure_turns(1)


def _measure_round(missing: Sequence[Key]) -> None:
    files = {name: _files(name) for name in dict.fromkeys(key[1] for key in missing)}
    with busy_loops(missing[0][0]):
        for name, count in dict.fromkeys((key[1], key[2]) for key in missing):
            _measure_pairs(files[name], [key for key in missing if key[1:3] == (name, count)])


def _measure_turns(count: int) -> None:
    """Measure every pair `count` times on the quiet machine."""
    first = len({turn.number for turn in read_turns()})
    files = {name: _files(name) for name in NETWORKS}
    for turn in range(first, first + count):
        # one probe at a time, because a probe starts the processes of its next measurement after each one
        for name, threads in dict.fromkeys(pair[:2] for pair in PAIRS):
            with _probe(files[name][1.0], name, threads) as probe:
                for pair in PAIRS:
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
            find_model(name).factory().eval(), example, FileFormat(18, 9), PruningSettings(), Path(folder, "dense.onnx")
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


@dataclass(frozen=True)
class Line:
    """One measurement under a load. `at` is the time of its end, in seconds since 1970."""

    key: Key
    measurement: Measurement
    at: float


@dataclass(frozen=True)
class Turn:
    """The ratio of one pair in one turn."""

    number: int
    pair: Pair
    ratio: float
    processes: tuple[float, ...]
    """The ratio of each process."""
    at: float


def read_lines() -> list[Line]:
    """The measurements so far."""
    return [
        Line((*line["key"],), _MEASUREMENT.validate_python(line["measurement"], strict=False), line["at"])
        for line in _lines(RESULTS)
    ]


def read_turns() -> list[Turn]:
    """The turns so far, a line for each pair."""
    return [
        Turn(line["turn"], (*line["pair"],), line["ratio"], (*line["processes"],), line["at"]) for line in _lines(QUIET_RATIOS)
    ]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
