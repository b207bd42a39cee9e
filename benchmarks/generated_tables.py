"""Search problems made from generated networks. They look to a searcher like recorded ones; see `plan_tables.py`."""

import math

import numpy as np
import torch
from generated_spaces import Spaces, generate
from plan_tables import Floats, PlanTable, log_odds_of

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Choice, Layer, SearchSpace, widths_of
from pipeline.search.sensitivity import probing_plans

__all__ = ["HELD_OUT_SEED", "generated_table", "table_in"]

HELD_OUT_SEED = 10**6
"""No policy is trained on networks of this seed or a later one."""
STEP = 4
NOISE = 0.01


def generated_table(number: int) -> PlanTable:
    """The table of one held-out generated network, whose distances are known."""
    seed = HELD_OUT_SEED + 1000 * (number + 1)
    spaces = generate(1, seed)
    while not spaces.proxies[0, 0, 0]:
        seed += 1
        spaces = generate(1, seed)
    return table_in(spaces, 0)


def table_in(spaces: Spaces, row: int) -> PlanTable:
    """The table of one of `spaces`."""
    one = spaces.subset(torch.tensor([row]))
    groups = int((~one.absent[0]).sum())
    space = SearchSpace(tuple(_choice(one, group, groups) for group in range(groups)))

    def padded(kept: Floats) -> tuple[Spaces, torch.Tensor]:
        rows = torch.ones((len(kept), one.channels.shape[1]))
        rows[:, :groups] = torch.from_numpy(kept)
        return one.subset(torch.zeros(len(kept), dtype=torch.long)), rows

    def log_ratio(kept: Floats) -> Floats:
        many, rows = padded(kept)
        return np.asarray(torch.log(many.latency(rows)).double().numpy())

    def log_odds(kept: Floats) -> Floats:
        many, rows = padded(kept)
        return log_odds_of(many.score(rows).double().numpy())

    return PlanTable(space, log_ratio, log_odds, NOISE, _distances(one, space))


def _choice(one: Spaces, group: int, groups: int) -> Choice:
    """The choice whose features are those of the generated group."""
    channels, macs, params, inputs, area, stride = (float(value) for value in one.features[0, group, :6])
    width = round(64 * math.exp(channels))
    side = max(round(math.exp(area) ** 0.5), 1)
    return Choice(
        name=f"group{group}",
        channels=width,
        widths=widths_of(width, 1, STEP),
        macs_share=math.exp(macs) / groups,
        params_share=math.exp(params) / groups,
        layer=Layer(round(64 * math.exp(inputs)), (side, side), (1 + round(stride), 1 + round(stride))),
    )


def _distances(one: Spaces, space: SearchSpace) -> dict[ChannelPlan, float]:
    found: dict[ChannelPlan, float] = {}
    for group, plans in enumerate(probing_plans(space).values()):
        known, quarter, half = (float(value) for value in one.proxies[0, group])
        power = (half - quarter) / math.log(2)
        for plan in plans:
            removed = 1 - plan[space.choices[group].name] / space.choices[group].channels
            if known:
                found[plan] = math.exp(half + power * math.log(removed / 0.5))
    return found
