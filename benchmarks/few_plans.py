"""Plans of `few.py`: one for each network and budget, from the sensitivity of each group of channels.

The sensitivity of a group is the distance between the outputs of the dense network and of the one that keeps three, two or one
quarter of this group's channels, after least-squares reconstruction and with re-estimated BatchNorm statistics. A knapsack gives
the widths with the smallest sum of distances that save enough MACs. How many MACs are enough is found by bisection, with timed
files.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from few_bench import Bench
from numpy.typing import NDArray

from pipeline.core.onnx_outputs import open_session
from pipeline.core.plan import ChannelPlan
from pipeline.search.knapsack import fill
from pipeline.search.problem import SearchSpace
from pipeline.stages.search_space import search_space
from pipeline.training.epochs import distillation_loss
from pipeline.training.recover.distil import TEMPERATURE
from pipeline.training.scoring import recalibrate

SHARES = (0.25, 0.5, 0.75)
STEP = 8
"""Widths are multiples of so many channels."""
BISECTIONS = 7
RUNS = 80
"""Timed runs of each file, in turns with the dense one."""
Floats = NDArray[np.float64]


def plans_in(results: Path) -> dict[str, Any]:
    """The stored plans: network -> budget in percent -> widths and figures."""
    path = results / "plans.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def widths_of(results: Path, network: str, budget: int) -> dict[str, int] | None:
    """The widths of the stored plan, by group; None if there is none."""
    found = plans_in(results).get(network, {}).get(str(budget))
    return found["widths"] if found else None


def make_plans(bench: Bench, budgets: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    """Make the plan of each budget, in percent of the dense network's latency."""
    space = search_space(bench.builder, STEP)
    distances = sensitivities(bench, space)
    dense = bench.builder.make(bench.builder.space.dense())
    found = {}
    for budget in budgets:
        low, high, best = 0.05, 1.0, None
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            plan = cheapest(space, distances, middle)
            pruned = bench.builder.make(plan)
            share = latency_share(pruned.data, dense.data, tuple(bench.builder.example.shape))
            low, high = (middle, high) if share <= budget / 100 else (low, middle)
            if share <= budget / 100 or best is None:
                best = {"latency": round(share, 4), "macs": round(pruned.macs / dense.macs, 4), "widths": dict(plan)}
        assert best is not None
        found[budget] = best | {"by": "sensitivity of each group, a knapsack and timed files"}
    return found


def sensitivities(bench: Bench, space: SearchSpace) -> dict[str, Floats]:
    """For each group, the distance of the outputs when it alone keeps each of SHARES of its channels, and all."""
    whole = {choice.name: choice.channels for choice in space.choices}
    found = {}
    for choice in space.choices:
        distances = []
        for share in SHARES:
            width = min(choice.widths, key=lambda width: abs(width - share * choice.channels))
            student = bench.student(ChannelPlan.of(whole | {choice.name: width}))
            recalibrate(student, bench.task.statistics_images())
            distances.append(distance(bench, student) if width < choice.channels else 0.0)
        found[choice.name] = np.asarray([*distances, 0.0])
        print(f"{choice.name}: {np.round(found[choice.name], 4).tolist()}", flush=True)
    return found


def distance(bench: Bench, student: torch.nn.Module) -> float:
    """Distance between the outputs of the two networks on the training pictures."""
    total = 0.0
    with torch.inference_mode():
        for pixels, labels in bench.splits.train.batches():
            total += float(distillation_loss(student(pixels), bench.dense(pixels), TEMPERATURE)) * len(labels)
    return total / len(bench.splits.train)


def cheapest(space: SearchSpace, distances: Mapping[str, Floats], macs: float) -> ChannelPlan:
    """The plan with the smallest sum of distances that keeps the share `macs` of the MACs, if savings add up."""
    points = [*SHARES, 1.0]
    values, costs, widths = [], [], []
    for choice in space.choices:
        allowed = [width for width in choice.widths if width >= points[0] * choice.channels]
        kept = np.asarray(allowed) / choice.channels
        thinnest = choice.widths[0] / choice.channels
        saved = choice.macs_share * (1 - kept) / (1 - thinnest) if thinnest < 1 else np.zeros(len(kept))
        values.append(-np.interp(kept, points, distances[choice.name]))
        costs.append(-saved)
        widths.append(allowed)
    picks = fill(values, costs, macs - 1, bins=1000)[0]
    return space.plan_of([allowed[pick] for allowed, pick in zip(widths, picks, strict=True)])


def latency_share(pruned: bytes, dense: bytes, shape: tuple[int, ...]) -> float:
    """The processor time of `pruned` as a share of that of `dense`, with one thread, in turns."""
    sessions = [open_session(data, threads=1) for data in (pruned, dense)]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    seconds: list[list[float]] = [[], []]
    for _ in range(RUNS):
        for session, taken in zip(sessions, seconds, strict=True):
            started = time.thread_time()
            session.run(None, {session.get_inputs()[0].name: images})
            taken.append(time.thread_time() - started)
    return median(seconds[0]) / median(seconds[1])
