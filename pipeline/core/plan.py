"""Prune space: which channels must be removed together. Plan: how many channels each group keeps."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["IMPORTANCES", "ChannelPlan", "Group", "Importance", "Kept", "NotPrunable", "PruneSpace", "Slot", "layer_of"]

Importance = Literal["l1", "l2", "bn", "taylor", "reconstruction"]
"""How the channels of a group are ranked; see `pipeline.graph.importance.rank`."""
IMPORTANCES: tuple[str, ...] = get_args(Importance)

Kept = Mapping[str, tuple[int, ...]]
"""Group name -> indices of its kept channels, ascending."""

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
class NotPrunable:
    """A layer that keeps its width, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True)
class ChannelPlan:
    """The number of channels that each group keeps."""

    widths: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, widths: Mapping[str, int]) -> "ChannelPlan":
        """Create the plan with these widths."""
        return cls(tuple(widths.items()))

    def __getitem__(self, group: str) -> int:
        return dict(self.widths)[group]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.widths)


@dataclass(frozen=True)
class PruneSpace:
    """All prunable groups of a network, and the layers that keep their width."""

    groups: tuple[Group, ...]
    frozen: tuple[NotPrunable, ...] = ()

    def dense(self) -> ChannelPlan:
        """Return the plan that keeps every channel."""
        return ChannelPlan(tuple((group.name, group.channels) for group in self.groups))

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
            stays = np.zeros(int(channels.max()) + 1, dtype=bool)
            stays[[channel for channel in kept[group] if channel < len(stays)]] = True
            mask[entries] &= stays[channels]
        return np.flatnonzero(mask)
