"""Sensitivity: how far the outputs move when one group alone loses channels, or one block is dropped, and the plans that this
suggests.

The distance of a group grows like a power of the share of its channels that is removed. The power is fitted to two measured
distances. A knapsack then gives, for each number of MACs, the widths with the smallest sum of distances. Neither distances nor
savings add up exactly, so these plans are only where a search starts (AMC, arXiv 1802.03494, and HALP, arXiv 2110.10811, measure
one layer at a time too).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.knapsack import fill
from pipeline.search.problem import Path, SearchSpace

__all__ = ["REMOVED", "path_of", "probing_plans"]

Floats = NDArray[np.float64]

REMOVED = (0.25, 0.5)
"""Shares of a group's channels whose removal is measured."""
LEAST_POWER, MOST_POWER = 1.0, 4.0
BINS = 1000


def probing_plans(space: SearchSpace) -> dict[str, tuple[ChannelPlan, ...]]:
    """Return the plans whose distances are measured: for each group, those in which it alone loses `REMOVED` of its channels, and
    for each block, the one that drops it alone.

    A group without such widths has fewer plans.
    """
    dense = space.dense()
    whole = space.widths_in(dense)
    found = {}
    for number, choice in enumerate(space.choices):
        widths = [0] if choice.is_block else [_nearest(choice.widths, (1 - removed) * choice.channels) for removed in REMOVED]
        plans = [space.plan_of([*whole[:number], width, *whole[number + 1 :]]) for width in dict.fromkeys(widths)]
        found[choice.name] = tuple(plan for plan in plans if plan != dense)
    return found


def path_of(space: SearchSpace, distances: Mapping[ChannelPlan, float]) -> Path:
    """Return a function from a share, 0 to 1, to the plan that is expected to change the outputs least for its number of MACs.

    At 0, all MACs that can be saved are saved; 1 is the dense plan. `distances` holds those of `probing_plans`. If blocks can be
    dropped, a MAC that is saved by dropping one counts as much as `block_gain` MACs that are saved by removing channels.
    """
    contents = [len(choice.contents) for choice in space.choices]
    values, shares = [], []
    for number, (choice, plans) in enumerate(zip(space.choices, probing_plans(space).values(), strict=True)):
        kept = np.asarray(choice.widths) / choice.channels
        measured = [(1 - space.widths_in(plan)[number] / choice.channels, distances[plan]) for plan in plans]
        values.append(-_curve(1 - kept, measured))
        shares.append(-choice.macs_share * (1 - kept) / (1 - kept[0]) if kept[0] < 1 else np.zeros(len(kept)))

    def path(share: float, block_gain: float = 1.0) -> ChannelPlan:
        costs = [block_gain * each if choice.is_block else each for each, choice in zip(shares, space.choices, strict=True)]
        all_saved = _least(costs, contents)
        rounding = -all_saved * len(costs) / BINS  # `fill` rounds each cost up by at most one bin
        picks = fill(values, costs, (1 - share) * all_saved + rounding, BINS, contents)[0]
        return space.plan_of([choice.widths[pick] for choice, pick in zip(space.choices, picks, strict=True)])

    return path


def _least(costs: Sequence[Floats], contents: Sequence[int]) -> float:
    """The smallest sum of costs. A block with `contents` is dropped, or kept with what is inside it."""
    total, number = 0.0, 0
    while number < len(costs):
        size = contents[number]
        inside = slice(number + 1, number + 1 + size)
        least = float(costs[number].min())
        total += min(least, _least(costs[inside], contents[inside])) if size else least
        number += 1 + size
    return total


def _curve(removed: Floats, measured: list[tuple[float, float]]) -> Floats:
    """The distance for each share that is removed, from one or two measured ones. 0 if none was measured."""
    seen = [(share, distance) for share, distance in measured if distance > 0]
    if not seen:
        return np.zeros(len(removed))
    share, distance = seen[-1]
    power = LEAST_POWER
    if len(seen) > 1 and seen[0][0] < share:
        power = math.log(distance / seen[0][1]) / math.log(share / seen[0][0])
    return distance * (removed / share) ** min(max(power, LEAST_POWER), MOST_POWER)


def _nearest(widths: tuple[int, ...], width: float) -> int:
    return min(widths, key=lambda each: (abs(each - width), -each))
