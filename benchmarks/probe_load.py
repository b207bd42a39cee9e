"""How accurate the probe's ratios are while other programs use the cores. `benchmarks/probe.py --load` runs it.

Pairs of a network and a uniform plan are measured on a quiet machine, and with 1 and 3 busy loops on every core.

The *quiet ratio* of a pair comes from measurements of its own. They are taken in turns: a turn measures every pair once, with
TURN_PROCESSES fresh processes, on the quiet machine. So the turns of a pair lie minutes apart, as measurements of users do. The
quiet ratio is the mean of the turns. Its interval is Student's t over the turns.

A measurement is *inside* when it differs from the quiet ratio by no more than two estimates with these intervals differ:
|measured - quiet| <= sqrt(reach^2 + quiet reach^2), where a reach is the distance from the value to the end of its interval
that faces the other value. The rule was fixed before the first measurement. *Strictly* counts the measurements whose own
interval holds the value of the quiet ratio. That is a stricter rule, because the quiet ratio is an estimate too.

A verdict *within* is wrong when the whole interval lies below a limit that the file exceeds on the quiet machine: below
WRONG_LIMIT of the quiet ratio, and below the interval of the quiet ratio. An alarm is a file whose interval against itself does
not hold 1.

Each measurement is a line of benchmarks/results/probe_load.jsonl with its raw runs, and each pair of a turn is a line of
probe_quiet_ratios.jsonl. Lines hold the load average before they were measured. Existing lines are not measured again, and
the table is made from the lines alone.
"""

import contextlib
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from pipeline.core import statistics
from pipeline.core.measurement import Measurement
from pipeline.core.opsets import FileFormat
from pipeline.core.profile import Profile, available_cores, load_profile
from pipeline.core.statistics import Estimate
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
WRONG_LIMIT = 0.98
"""A limit of this share of the quiet ratio is violated by the file. The verdict *within* is wrong there."""
_MEASUREMENT = TypeAdapter(Measurement)

Key = tuple[int, str, int, float, int]
"""Busy loops on each core, network, threads, share of kept channels, number of the repeat."""
Pair = tuple[str, int, float]
"""Network, threads, share of kept channels."""
PAIRS: tuple[Pair, ...] = tuple((name, threads, fraction) for name in NETWORKS for threads in THREADS for fraction in FRACTIONS)


def keys(load: int) -> list[Key]:
    """All measurements under one load."""
    return [(load, *pair, 0) for pair in PAIRS] + [(load, *SAME, number) for number in range(1, SAME_TIMES + 1)]


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
        file.write(json.dumps(line, separators=(",", ":")) + "\n")


@functools.cache
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


def quiet_ratios(turns: list[tuple[int, Pair, float]]) -> dict[Pair, Estimate]:
    """The quiet ratio of each pair with its interval. Pairs of fewer than three turns have none."""
    found: dict[Pair, list[float]] = {}
    for _, pair, ratio in turns:
        found.setdefault(pair, []).append(ratio)
    estimates = {}
    for pair, ratios in found.items():
        if len(ratios) >= 3:
            mean = float(np.mean(ratios))
            reach = statistics.student(len(ratios) - 1) * float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
            estimates[pair] = Estimate(mean, mean - reach, mean + reach)
    return estimates


def is_inside(measured: Estimate, quiet: Estimate) -> bool:
    """Whether the two differ by no more than two estimates with these intervals differ."""
    if measured.value <= quiet.value:
        reach, quiet_reach = measured.high - measured.value, quiet.value - quiet.low
    else:
        reach, quiet_reach = measured.value - measured.low, quiet.high - quiet.value
    return abs(measured.value - quiet.value) <= math.hypot(reach, quiet_reach)


@dataclass
class _Row:
    """The counts of one load and number of threads."""

    pairs: int = 0
    inside: int = 0
    strictly: int = 0
    undecided: int = 0
    wrong: int = 0
    same: int = 0
    alarms: int = 0
    widths: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    def count(self, key: Key, measured: Measurement, quiet: Estimate | None) -> None:
        """Add one measurement."""
        ratio = measured.relative_p50
        if ratio is None:
            return
        if key[3] == 1.0:
            self.same += 1
            self.alarms += not measured.doubts and not ratio.low <= 1 <= ratio.high
        if key[4] or quiet is None:
            return
        self.pairs += 1
        if measured.doubts:
            self.undecided += 1
            return
        self.inside += is_inside(ratio, quiet)
        self.strictly += ratio.low <= quiet.value <= ratio.high
        self.wrong += ratio.high <= min(WRONG_LIMIT * quiet.value, quiet.low)
        self.widths.append((ratio.high - ratio.low) / ratio.value)
        every = statistics.ratio_estimate(*_blocks(measured), statistics.MEDIAN)
        if every:
            self.plain.append((every.high - every.low) / every.value)

    @property
    def text(self) -> str:
        """The cells of the row."""
        widths = [f"{100 * sorted(each)[len(each) // 2]:.1f} %" if each else "" for each in (self.widths, self.plain)]
        good = f"{100 * (self.inside + self.undecided) / self.pairs:.0f} %" if self.pairs else ""
        outside = self.pairs - self.inside - self.undecided
        cells = (self.pairs, self.inside, self.undecided, outside, good, self.strictly, self.wrong)
        return " | ".join(map(str, (*cells, f"{self.alarms} of {self.same}", *widths)))


def table(lines: list[tuple[Key, Measurement]], turns: list[tuple[int, Pair, float]]) -> list[str]:
    """One row for each load and number of threads."""
    quiet = quiet_ratios(turns)
    names = "loops, threads, pairs, inside, undecided, outside, good, strictly, wrong *within*, A/A alarms, width, all runs"
    rows = [f"| {names.replace(', ', ' | ')} |", "| --: " * (1 + names.count(",")) + "|"]
    for load in LOADS:
        for threads in THREADS:
            row = _Row()
            for key, measured in lines:
                if key[0] == load and key[2] == threads:
                    row.count(key, measured, quiet.get(key[1:4]))
            rows.append(f"| {load} | {threads} | {row.text} |")
    reaches = sorted((each.high - each.low) / 2 / each.value for each in quiet.values())
    middle = f"{100 * reaches[len(reaches) // 2]:.1f} %" if reaches else "not known"
    return [
        *rows,
        "",
        f"{len({turn for turn, *_ in turns})} turns; the quiet ratio is known to +- {middle} (median of the pairs)",
    ]


def _blocks(measured: Measurement) -> tuple[statistics.Blocks, statistics.Blocks]:
    """Every timed run of the file and of the reference, whoever disturbed it."""
    processes = measured.processes
    return tuple(each.latency_ms for each in processes), tuple(each.reference_latency_ms for each in processes)
