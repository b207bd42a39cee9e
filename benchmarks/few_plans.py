"""Plans of `few.py`: one for each network and budget, from the sensitivity of each group of channels.

They come from where the product's search starts (`pipeline/search/sensitivity.py`), and not from a whole search, because the
latency of a candidate says little on a busy machine. How far to go is found by bisection, with files that are timed in turns.
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from few_bench import Bench

from pipeline.core.batch import Inputs
from pipeline.core.onnx_outputs import open_session
from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import SearchSpace
from pipeline.search.sensitivity import path_of, probing_plans
from pipeline.stages.search_space import search_space
from pipeline.stages.sensitivity import output_distance

STEP = 8
"""Widths are multiples of so many channels."""
BISECTIONS = 7
RUNS = 80
"""Timed runs of each file, in turns with the dense one."""


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
    path = path_of(space, distances_of(bench, space))
    dense = bench.builder.make(bench.builder.space.dense())
    found = {}
    for budget in budgets:
        low, high, best = 0.0, 1.0, None
        for _ in range(BISECTIONS):
            plan = path((low + high) / 2)
            pruned = bench.builder.make(plan)
            share = latency_share(pruned.data, dense.data, bench.builder.example)
            low, high = ((low + high) / 2, high) if share <= budget / 100 else (low, (low + high) / 2)
            if share <= budget / 100 or best is None:
                best = {"latency": round(share, 4), "macs": round(pruned.macs / dense.macs, 4), "widths": dict(plan)}
        assert best is not None
        found[budget] = best | {"by": "the sensitivity of each group, and timed files"}
    return found


def distances_of(bench: Bench, space: SearchSpace) -> dict[ChannelPlan, float]:
    """How far the outputs move, on the training pictures, when one group alone loses channels."""
    batches = [pixels for pixels, _ in bench.splits.train.batches()]
    with torch.inference_mode():
        dense = [bench.dense(pixels) for pixels in batches]
    found = {}
    for name, plans in probing_plans(space).items():
        for plan in plans:
            found[plan] = output_distance(bench.student(plan), dense, batches)
        print(name, [round(found[plan], 4) for plan in plans], flush=True)
    return found


def latency_share(pruned: bytes, dense: bytes, example: Inputs) -> float:
    """The processor time of `pruned` as a share of that of `dense`, with one thread, in turns."""
    sessions = [open_session(data, threads=1) for data in (pruned, dense)]
    assert isinstance(example, torch.Tensor)
    images = np.random.default_rng(0).standard_normal(tuple(example.shape)).astype(np.float32)
    seconds: list[list[float]] = [[], []]
    for _ in range(RUNS):
        for session, taken in zip(sessions, seconds, strict=True):
            started = time.thread_time()
            session.run(None, {session.get_inputs()[0].name: images})
            taken.append(time.thread_time() - started)
    return median(seconds[0]) / median(seconds[1])
