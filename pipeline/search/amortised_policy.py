"""Amortised policy: a network that proposes the widths of all groups for a budget, from experience with many other networks.

It is trained in advance (benchmarks/pretrain_policy.py). It sees each group's shape and its share of MACs and parameters, the
share of latency that is wanted, and, if they were measured, the distances of `pipeline.search.sensitivity`. Groups attend to each
other, so a network may have any number of groups.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import SearchSpace
from pipeline.search.sensitivity import probing_plans

__all__ = ["CHECKPOINT", "FEATURES", "AmortisedPolicy", "features_of", "load_policy", "path_of_policy"]

Floats = NDArray[np.float32]

CHECKPOINT = Path(__file__).parent / "amortised_policy.safetensors"
FEATURES = (
    "log channels",
    "log MACs share",
    "log parameters share",
    "log inputs",
    "log kernel area",
    "stride",
    "position",
    "log groups",
    "distances are known",
    "log distance, 25 % removed",
    "log distance, 50 % removed",
)
HIDDEN, HEADS, LAYERS = 32, 4, 2


class AmortisedPolicy(nn.Module):
    """Self-attention over the groups. The output of a group is the fraction of its channels to keep, as log odds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(len(FEATURES) + 1, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, 2 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
        self.groups = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, 1)
        with torch.no_grad():  # a new policy proposes uniform plans
            self.head.weight.mul_(0.01)
            self.head.bias.zero_()

    def forward(self, features: Tensor, budget: Tensor, absent: Tensor | None = None) -> Tensor:
        """(n, groups, FEATURES), (n,) shares of the latency, (n, groups) whether a row is padding -> log odds (n, groups).

        The logarithm of the share is added to them, so that an untrained policy also keeps less for less latency.
        """
        wanted = torch.logit(budget.clamp(0.02, 0.98))[:, None]
        rows = torch.cat([features, wanted[..., None].expand(-1, features.shape[1], 1)], dim=-1)
        found: Tensor = self.head(self.groups(self.embed(rows), src_key_padding_mask=absent)).squeeze(-1)
        return found + 0.5 * wanted + 0.5


def features_of(space: SearchSpace, distances: Mapping[ChannelPlan, float] | None = None) -> Floats:
    """The features of each choice, (choices, FEATURES). `distances` are those of `sensitivity.probing_plans`."""
    count = len(space.choices)
    known = _distances(space, distances) if distances else np.zeros((count, 3))
    rows = []
    for place, (choice, seen) in enumerate(zip(space.choices, known, strict=True)):
        layer = choice.layer
        rows.append(
            (
                math.log(max(choice.channels, 1) / 64),
                math.log(max(choice.macs_share * count, 1e-3)),
                math.log(max(choice.params_share * count, 1e-3)),
                math.log(max(layer.inputs, 1) / 64),
                math.log(layer.kernel[0] * layer.kernel[1]),
                float(max(layer.stride) - 1),
                (place + 0.5) / count,
                math.log(count / 16),
                *seen,
            )
        )
    return np.asarray(rows, dtype=np.float32)


def path_of_policy(
    space: SearchSpace, distances: Mapping[ChannelPlan, float] | None = None, policy: AmortisedPolicy | None = None
) -> Callable[[float], ChannelPlan]:
    """A function from a share of the latency, 0 to 1, to the plan that the policy proposes for it; 1 is the dense plan.

    Blocks are kept, and the widths inside them are proposed.
    """
    policy = policy or load_policy()
    features = torch.from_numpy(features_of(space, distances))[None]
    blocks = [choice.is_block for choice in space.choices]

    def path(share: float) -> ChannelPlan:
        if share >= 1:
            return space.dense()
        if share <= 0:
            return space.thinnest()
        with torch.no_grad():
            fractions = torch.sigmoid(policy(features, torch.tensor([share], dtype=torch.float32)))[0].tolist()
        return space.plan([1.0 if block else fraction for block, fraction in zip(blocks, fractions, strict=True)])

    return path


@cache
def load_policy(path: Path = CHECKPOINT) -> AmortisedPolicy:
    """The trained policy."""
    policy = AmortisedPolicy()
    policy.load_state_dict(load_file(path))
    return policy.eval()


def _distances(space: SearchSpace, distances: Mapping[ChannelPlan, float]) -> NDArray[np.float64]:
    """(choices, 3): 1 if the distances are known, and their logarithms, less the mean over all groups."""
    found = np.zeros((len(space.choices), 3))
    for number, (choice, plans) in enumerate(zip(space.choices, probing_plans(space).values(), strict=True)):
        measured = [(1 - space.widths_in(plan)[number] / choice.channels, distances.get(plan, 0.0)) for plan in plans]
        seen = [(removed, distance) for removed, distance in measured if distance > 0]
        if seen:
            found[number] = 1.0, *_logs_at(seen)
    known = found[:, 0] > 0
    found[known, 1:] -= found[known, 1:].mean(0)
    return found


def _logs_at(seen: list[tuple[float, float]]) -> tuple[float, float]:
    """The logarithms of the distances at 25 % and 50 % removed, along the power law through one or two measured ones."""
    (share, distance), (first, less) = seen[-1], seen[0]
    power = math.log(distance / less) / math.log(share / first) if share > first else 2.0
    at = [math.log(distance) + power * math.log(removed / share) for removed in (0.25, 0.5)]
    return at[0], at[1]
