"""Prune space: which channels hang together. Plan: how many of each group stay."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["IMPORTANCES", "ChannelPlan", "Group", "Importance", "Kept", "NotPrunable", "PruneSpace", "Slot"]

Importance = Literal["l1", "l2", "bn", "taylor"]
"""How the channels of a group are ranked; see `pipeline.graph.importance.rank`."""
IMPORTANCES: tuple[str, ...] = get_args(Importance)

Kept = Mapping[str, tuple[int, ...]]
"""Group name -> the channels of it that stay, ascending."""

Axis = tuple[str, int]
"""A tensor's name in the state dict, and one of its axes."""


@dataclass(frozen=True)
class Slot:
    """The entries of one tensor axis that belong to a group: entry `entries[i]` is part of channel `channels[i]`.

    A convolution's output axis lists each entry once; the input axis of a linear layer behind a flatten lists
    height x width entries for each channel.
    """

    tensor: str
    axis: int
    entries: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together: all slots lose the entries of a removed channel."""

    name: str
    """The module whose output channels are counted."""
    channels: int
    """How many can be removed one by one."""
    slots: tuple[Slot, ...]
    bundle: int = 1
    """Outputs of the named module in each channel; above 1 where a grouped convolution must shrink evenly."""


@dataclass(frozen=True)
class NotPrunable:
    """A layer that keeps its width, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ChannelPlan:
    """How many channels each group keeps."""

    widths: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, widths: Mapping[str, int]) -> "ChannelPlan":
        """The plan with these widths."""
        return cls(tuple(widths.items()))

    def __getitem__(self, group: str) -> int:
        return dict(self.widths)[group]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.widths)


@dataclass(frozen=True)
class PruneSpace:
    """All groups of a network, and the layers that must stay as they are."""

    groups: tuple[Group, ...]
    frozen: tuple[NotPrunable, ...] = ()

    def dense(self) -> ChannelPlan:
        """The plan that keeps everything."""
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
        """Tensor name -> the axes of it that can shrink."""
        axes = defaultdict(set)
        for tensor, axis in self._members:
            axes[tensor].add(axis)
        return {tensor: tuple(sorted(found)) for tensor, found in axes.items()}

    def remaining(self, tensor: str, axis: int, size: int, kept: Kept) -> NDArray[np.int64]:
        """Indices, ascending, that stay on `axis` (of length `size`) of `tensor` when groups keep `kept`."""
        mask = np.ones(size, dtype=bool)
        for group, entries, channels in self._members.get((tensor, axis), ()):
            stays = np.zeros(int(channels.max()) + 1, dtype=bool)
            stays[[channel for channel in kept[group] if channel < len(stays)]] = True
            mask[entries] &= stays[channels]
        return np.flatnonzero(mask)
