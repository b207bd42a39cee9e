"""Which plans are recorded: uniform ones, random ones, and neighbours of good plans near three budgets.

The next plan depends only on the lines so far, so an interrupted recording continues as if it had not been interrupted.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.search.problem import SearchSpace

__all__ = ["BUDGETS", "next_fine_tuned", "next_plan"]

Floats = NDArray[np.float64]

BUDGETS = (0.5, 0.35, 0.25)
"""Shares of the dense network's latency near which the space is covered most densely."""
UNIFORM = 24
PARENTS = 16
CHILDREN = 32
CHANGED_GROUPS = 3
REACH = 0.25


def next_plan(space: SearchSpace, plans: list[dict[str, Any]], seed: int = 0) -> tuple[str, list[int]]:
    """The kind and the widths of the next plan, which is none of `plans`."""
    known = {tuple(line["widths"]) for line in plans}
    number = len(plans)
    for attempt in range(1000):
        generator = np.random.default_rng((seed, number, attempt))
        if number < UNIFORM and not attempt:
            kind, fractions = "uniform", np.full(len(space.choices), 1 - number / (UNIFORM - 1))
        elif number % 2 or number < 4 * UNIFORM or attempt > 100:
            kind, fractions = "random", _random(len(space.choices), generator)
        else:
            kind, fractions = "neighbour", _neighbour(space, plans, BUDGETS[number // 2 % len(BUDGETS)], generator)
        widths = space.widths_in(space.plan(fractions.tolist()))
        if widths not in known:
            return kind, list(widths)
    raise ValueError("there are no more plans")


def next_fine_tuned(plans: list[dict[str, Any]], done: list[dict[str, Any]]) -> list[int]:
    """The widths of the next plan to fine-tune. Budgets take turns, and so do the best plan near a budget and a random one."""
    known = {tuple(line["widths"]) for line in done}
    budget = BUDGETS[len(done) % len(BUDGETS)]
    near = [p for p in plans if 0.9 * budget <= p["ratio"] <= 1.01 * budget and tuple(p["widths"]) not in known]
    near = near or [p for p in plans if tuple(p["widths"]) not in known]
    if len(done) // len(BUDGETS) % 2:
        chosen = near[np.random.default_rng((1, len(done))).integers(len(near))]
    else:
        chosen = max(near, key=lambda plan: plan["score"])
    return list(chosen["widths"])


def _random(groups: int, generator: np.random.Generator) -> Floats:
    """Fractions around a random middle, with a random spread."""
    middle, spread = generator.uniform(0.05, 1.0), generator.uniform(0.0, 0.6)
    return np.clip(middle + spread * generator.standard_normal(groups), 0.0, 1.0)


def _neighbour(space: SearchSpace, plans: list[dict[str, Any]], budget: float, generator: np.random.Generator) -> Floats:
    """A mix or mutation of good plans whose latency is estimated to be near the budget."""
    channels = np.asarray([choice.channels for choice in space.choices])
    kept = np.asarray([plan["widths"] for plan in plans]) / channels
    ratios, scores = (np.asarray([plan[name] for plan in plans]) for name in ("ratio", "score"))
    order = np.lexsort((-scores, np.maximum(ratios - 1.02 * budget, 0.0)))
    parents = kept[order[:PARENTS]]
    mothers, fathers = (parents[generator.integers(len(parents), size=CHILDREN)] for _ in range(2))
    mixed = np.where(generator.random(mothers.shape) < 0.15, fathers, mothers)
    changed = generator.random(mixed.shape) < CHANGED_GROUPS / len(channels)
    children = np.clip(np.where(changed, mixed + REACH * generator.standard_normal(mixed.shape), mixed), 0.0, 1.0)
    wanted = budget * generator.uniform(0.85, 1.03)
    weights = np.linalg.lstsq(_terms(kept), ratios, rcond=1e-6)[0]
    return np.asarray(children[np.abs(_terms(children) @ weights - wanted).argmin()], dtype=np.float64)


def _terms(kept: Floats) -> Floats:
    """Terms of a rough estimate of the latency: each fraction, and its product with the next group's."""
    return np.column_stack([np.ones(len(kept)), kept, kept[:, 1:] * kept[:, :-1]])
