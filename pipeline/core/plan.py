"""Prune space: which channels must be removed together, and which blocks can be dropped. Plan: what a candidate keeps."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "IMPORTANCES",
    "Block",
    "ChannelPlan",
    "Group",
    "Importance",
    "Kept",
    "NotPrunable",
    "PruneSpace",
    "Slot",
    "dropped_in",
    "layer_of",
]

Importance = Literal["l1", "l2", "bn", "taylor", "reconstruction"]
"""How the channels of a group are ranked; see `pipeline.graph.importance.rank`."""
IMPORTANCES: tuple[str, ...] = get_args(Importance)

Kept = Mapping[str, tuple[int, ...]]
"""Group name -> indices of its kept channels, ascending. A group without an entry keeps all. A dropped block has an entry
without channels under the block's name, which is the name of no group.
"""

Axis = tuple[str, int]
"""The name of a tensor in the state dict, and one of its axes."""


@dataclass(frozen=True)
class Slot:
    """The entries of one tensor axis that belong to a group. Entry `entries[i]` is part of channel `channels[i]`.

    The output axis of a convolution lists each entry once. The input axis of a linear layer after a flatten lists
    height x width entries for each channel.
    """

    tensor: str
    axis: int
    entries: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. All slots lose the entries of a removed channel."""

    name: str
    """Module whose output channels are counted."""
    channels: int
    """Number of channels that can be removed one by one."""
    slots: tuple[Slot, ...]
    bundle: int = 1
    """Outputs of the named module per channel: above 1 before a grouped convolution or for a head of attention, for example."""
    fewest: int = 1
    """The smallest number of channels that the user lets a plan keep."""


def layer_of(group: str) -> str:
    """The module that a group is named after. Several groups of one module have numbers: 'stem.conv', 'stem.conv#2'."""
    return group.partition("#")[0]


@dataclass(frozen=True)
class Block:
    """A part of the network that can be dropped as a whole, because its result is added to its own entry.

    entry -+-> layers -+-> addition -> result
           +-----------+
    """

    name: str
    """The module that holds its layers, or the largest of these modules."""
    node: str
    """The node of the exported graph that adds."""
    entry: int
    """Which input of that node takes the place of the result, 0 or 1: the entry, or a sum that contains it."""
    tensors: tuple[str, ...]
    """The tensors that only this block reads, in the order in which they are read."""
    groups: tuple[str, ...] = ()
    """The groups of channels that exist only inside. Their widths mean nothing when the block is dropped."""
    inside: tuple[str, ...] = ()
    """The blocks that are a part of this one."""
    bypassed: tuple[str, ...] = ()
    """The modules of the user's network that return their input when the block is dropped."""
    silenced: tuple[str, ...] = ()
    """The modules that return zeros then."""


def dropped_in(kept: Kept) -> tuple[str, ...]:
    """The names of the blocks that `kept` drops."""
    return tuple(name for name, channels in kept.items() if not channels)


@dataclass(frozen=True)
class NotPrunable:
    """A layer that keeps its width, or a block that cannot be dropped, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class ChannelPlan:
    """The number of channels that each group keeps, and the blocks that are dropped.

    A group that exists only inside dropped blocks has no width, and a block inside a dropped one is not listed. So a network
    has one plan; see `PruneSpace.plan`.
    """

    widths: tuple[tuple[str, int], ...]
    dropped: tuple[str, ...] = ()

    @classmethod
    def of(cls, widths: Mapping[str, int], dropped: Iterable[str] = ()) -> "ChannelPlan":
        """Create the plan with these widths, without these blocks."""
        return cls(tuple(widths.items()), tuple(dropped))

    def __getitem__(self, group: str) -> int:
        return dict(self.widths)[group]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.widths)


@dataclass(frozen=True)
class PruneSpace:
    """All prunable groups and blocks of a network, and the layers that keep their width."""

    groups: tuple[Group, ...]
    frozen: tuple[NotPrunable, ...] = ()
    blocks: tuple[Block, ...] = ()
    """The blocks that can be dropped, in the order in which they end."""

    def dense(self) -> ChannelPlan:
        """Return the plan that keeps every channel and every block."""
        return ChannelPlan(tuple((group.name, group.channels) for group in self.groups))

    def plan(self, widths: Mapping[str, int], dropped: Iterable[str] = ()) -> ChannelPlan:
        """Return the plan with these widths, in the order of the groups, without these blocks.

        Widths of groups inside dropped blocks, and blocks inside dropped blocks, are left out.
        """
        without = set(dropped)
        gone = [block for block in self.blocks if block.name in without]
        groups = {name for block in gone for name in block.groups}
        nested = {name for block in gone for name in block.inside}
        return ChannelPlan(
            tuple((group.name, widths[group.name]) for group in self.groups if group.name not in groups),
            tuple(block.name for block in gone if block.name not in nested),
        )

    def dropped(self, kept: Kept) -> tuple[Block, ...]:
        """Return the blocks that `kept` drops."""
        names = set(dropped_in(kept))
        return tuple(block for block in self.blocks if block.name in names)

    @cached_property
    def _members(self) -> dict[Axis, list[tuple[str, NDArray[np.int64], NDArray[np.int64]]]]:
        members = defaultdict(list)
        for group in self.groups:
            for slot in group.slots:
                entries, channels = np.asarray(slot.entries), np.asarray(slot.channels)
                members[slot.tensor, slot.axis].append((group.name, entries, channels))
        return dict(members)

    @cached_property
    def axes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> its axes that can shrink."""
        axes = defaultdict(set)
        for tensor, axis in self._members:
            axes[tensor].add(axis)
        return {tensor: tuple(sorted(found)) for tensor, found in axes.items()}

    def remaining(self, tensor: str, axis: int, size: int, kept: Kept) -> NDArray[np.int64]:
        """Return the ascending indices that remain on `axis` (of length `size`) of `tensor` when the groups keep `kept`."""
        mask = np.ones(size, dtype=bool)
        for group, entries, channels in self._members.get((tensor, axis), ()):
            if group not in kept:
                continue
            stays = np.zeros(int(channels.max()) + 1, dtype=bool)
            stays[[channel for channel in kept[group] if channel < len(stays)]] = True
            mask[entries] &= stays[channels]
        return np.flatnonzero(mask)
