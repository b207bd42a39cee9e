"""Space: the groups of prunable channels of a graph, as slots of its initializers, and what follows a plan."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.core.plan import Block, Group, Kept, NotPrunable, PruneSpace, Slot
from pipeline.graph.edit import unique_name
from pipeline.graph.labels.follow import Count, Follower, Places, followers
from pipeline.graph.labels.push import push
from pipeline.graph.labels.trace import Grouped, Trace
from pipeline.graph.labels.unions import Labels

__all__ = ["GraphSpace", "Statistic", "label_graph", "module_of", "name_nodes"]

Place = tuple[str, int]
"""An initializer and one of its axes."""

ALWAYS = 0
"""The channel number of positions that are never removed."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """A mean, a product or another sum over channels: the node's name, the position of an input, an axis of that input, and the
    channel number of each position of the axis."""

    node: str
    position: int
    axis: int
    channels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GraphSpace:
    """The groups of a graph. The tensors of the slots are initializers."""

    space: PruneSpace
    numbered: tuple[Group, ...]
    """All groups that were found, in the order in which their channels are numbered. `space` may hold fewer."""
    followers: tuple[Follower, ...]
    """Their labels are channel numbers; see `stays`."""
    statistics: tuple[Statistic, ...]
    reads: frozenset[Place]
    """The axes of weights that read channels. Where their entries are zero, a channel is silenced."""
    sizes: Mapping[Place, int]
    """Length of every axis of an initializer that a rule has looked at."""
    grouped: Grouped = "evenly"
    """How channels leave grouped layers."""
    has_grouped_layers: bool = False
    """Whether there is a grouped convolution, which is not depthwise, or a GroupNorm with several groups."""
    in_groups: frozenset[str] = frozenset()
    """The groups whose channels a grouped convolution or a GroupNorm reads or makes."""
    in_steps: frozenset[tuple[str, int]] = frozenset()
    """(name of a Slice, axis) for each axis of which it takes some channels in steps, so that these keep their number."""

    @cached_property
    def numbers(self) -> dict[Place, NDArray[np.int64]]:
        """(initializer, axis) -> the channel number of each position. Equal vectors are one object."""
        found: dict[Place, NDArray[np.int64]] = {}
        for group in self.numbered:
            for slot in group.slots:
                place = slot.tensor, slot.axis
                vector = found.setdefault(place, np.full(self.sizes[place], ALWAYS))
                vector[list(slot.entries)] = self.first[group.name] + np.asarray(slot.channels)
        seen: dict[bytes, NDArray[np.int64]] = {}
        return {place: seen.setdefault(vector.tobytes(), vector) for place, vector in found.items()}

    @cached_property
    def first(self) -> dict[str, int]:
        """Group -> number of its first channel. Channels are numbered from 1 over all groups."""
        starts, start = {}, ALWAYS + 1
        for group in self.numbered:
            starts[group.name] = start
            start += group.channels
        return starts

    def stays(self, kept: Kept) -> NDArray[np.bool_]:
        """Whether each channel number stays when the groups keep `kept`. A group that `kept` does not name keeps all."""
        found = np.zeros(1 + sum(group.channels for group in self.numbered), dtype=bool)
        found[ALWAYS] = True
        for group in self.numbered:
            start = self.first[group.name]
            if group.name in kept:
                found[start + np.asarray(kept[group.name], dtype=np.int64)] = True
            else:
                found[start : start + group.channels] = True
        return found

    def restricted(self, names: Container[str], refused: Iterable[NotPrunable]) -> "GraphSpace":
        """The same graph with only the groups of these names, and further layers that are not prunable."""
        groups = tuple(group for group in self.space.groups if group.name in names)
        return replace(self, space=replace(self.space, groups=groups, frozen=(*self.space.frozen, *refused)))

    def with_blocks(self, blocks: Iterable[Block], refused: Iterable[NotPrunable] = ()) -> "GraphSpace":
        """The same graph with these blocks that can be dropped, and further parts that are not prunable."""
        return replace(self, space=replace(self.space, blocks=tuple(blocks), frozen=(*self.space.frozen, *refused)))

    def __deepcopy__(self, memo: object) -> "GraphSpace":
        return self  # nothing in it changes, and copies of a network share it


def label_graph(model: onnx.ModelProto, grouped: Grouped = "evenly") -> GraphSpace:
    """Find which channels of `model` can be removed and what goes with them. The values of its weights play no part.

    A grouped convolution or a GroupNorm loses the same channels of each group, or, if `grouped` is "whole", whole groups.
    A layer that cannot be pruned is listed with the reason. Raises TraceError when shapes cannot be found.
    """
    if len({node.name for node in model.graph.node}) < len(model.graph.node):
        raise ValueError("the nodes of the graph have no names of their own")
    trace, nodes = push(model, grouped)
    classes = _classes(trace)
    groups, numbers = _groups(trace, classes)
    space = PruneSpace(tuple(groups), tuple(_not_prunable(trace, numbers)))
    kept_followers = tuple(
        Follower(found.node, found.key, _numbered(found.terms, trace, numbers)) for found in followers(trace, nodes)
    )
    statistics = tuple(
        Statistic(nodes[node].name, position, axis, _numbers(trace, labels, numbers))
        for (node, position, axis), labels in trace.statistics.items()
    )
    return GraphSpace(
        space,
        space.groups,
        tuple(found for found in kept_followers if _moves(found.terms)),
        tuple(found for found in statistics if found.channels.any()),
        frozenset(trace.consumers),
        {place: len(labels) for place, labels in trace.axes.items()},
        grouped,
        bool(trace.in_groups),
        _in_groups(trace, space, numbers),
        frozenset(trace.in_steps),
    )


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node of `model` a name of its own, in place. Names that are unique already are kept."""
    names: set[str] = set()
    for index, node in enumerate(model.graph.node):
        node.name = unique_name(node.name or f"{node.op_type}_{index}", names)


def _classes(trace: Trace) -> dict[int, list[Place]]:
    """Set of labels -> the (initializer, axis) pairs on which it occurs, for sets that a layer makes and that are not frozen."""
    occurs: dict[int, list[Place]] = defaultdict(list)
    produced: set[int] = set()
    for place, labels in trace.axes.items():
        roots = np.unique(trace.unions.find(labels)[~trace.unions.frozen(labels)]).tolist()
        for root in roots:
            occurs[root].append(place)
        if place in trace.producers:
            produced.update(roots)
    return {root: places for root, places in occurs.items() if root in produced}


def _groups(trace: Trace, classes: dict[int, list[Place]]) -> tuple[list[Group], dict[int, int]]:
    """Sets of labels that occur on the same axes are the channels of one group. Also returns set -> channel number."""
    together: dict[tuple[Place, ...], list[int]] = defaultdict(list)
    for root, places in classes.items():
        together[tuple(sorted(places))].append(root)
    found: list[tuple[int, int, Place, tuple[Place, ...], list[int]]] = []
    for key, roots in together.items():
        root_place = min((place for place in key if place in trace.producers), key=lambda place: trace.producers[place])
        if len(roots) < 2:
            outputs = len(trace.axes[root_place])
            reason = f"its {outputs} outputs can only leave together" if outputs > 1 else "it has a single channel to give"
            trace.unions.freeze(np.asarray(roots), reason)
            continue
        positions = _positions(trace, root_place)
        first = min(positions[root] for root in roots)
        found.append((trace.producers[root_place], first, root_place, key, roots))
    groups: list[Group] = []
    numbers: dict[int, int] = {}
    names: set[str] = set()
    for _, _, root_place, key, roots in sorted(found):
        order = sorted(roots, key=_positions(trace, root_place).__getitem__)
        channel = {root: number for number, root in enumerate(order)}
        slots = tuple(_slot(trace, place, channel) for place in key)
        name = unique_name(layer_name(root_place[0]), names)
        start = 1 + len(numbers)
        numbers.update({root: start + number for root, number in channel.items()})
        outputs = next(len(slot.entries) for slot in slots if (slot.tensor, slot.axis) == root_place)
        groups.append(Group(name, len(order), slots, max(1, round(outputs / len(order)))))
    return groups, numbers


def _in_groups(trace: Trace, space: PruneSpace, numbers: dict[int, int]) -> frozenset[str]:
    """The groups of channels that pass through grouped layers."""
    names = [group.name for group in space.groups for _ in range(group.channels)]
    found = {number for labels in trace.in_groups for number in np.unique(_numbers(trace, labels, numbers)).tolist()}
    return frozenset(names[number - 1] for number in found if number != ALWAYS)


def _positions(trace: Trace, place: Place) -> dict[int, int]:
    """Set of labels -> its first position on an axis."""
    found: dict[int, int] = {}
    for position, root in enumerate(trace.unions.find(trace.axes[place]).tolist()):
        found.setdefault(root, position)
    return found


def _slot(trace: Trace, place: Place, channel: dict[int, int]) -> Slot:
    roots = trace.unions.find(trace.axes[place]).tolist()
    entries = tuple(entry for entry, root in enumerate(roots) if root in channel)
    return Slot(place[0], place[1], entries, tuple(channel[roots[entry]] for entry in entries))


def layer_name(initializer: str) -> str:
    """The name of the layer that an initializer belongs to: 'layer1.0.conv1.weight' gives 'layer1.0.conv1'."""
    head, dot, last = initializer.rpartition(".")
    return head if dot and last in ("weight", "bias") else initializer


def module_of(initializer: str) -> str:
    """The module or parameter of the user's network that an initializer belongs to: 'rnn.weight_ih_l0_folded' gives 'rnn'."""
    head, dot, last = initializer.partition(".parametrizations.")[0].removesuffix("_folded").rpartition(".")
    return head if dot and last.startswith(("weight", "bias", "computed")) else f"{head}{dot}{last}"


def _not_prunable(trace: Trace, numbers: dict[int, int]) -> list[NotPrunable]:
    """The layers none of whose outputs can be removed, in the order in which they run."""
    found: dict[str, str] = {}
    for (weight, axis), _node in sorted(trace.producers.items(), key=lambda entry: entry[1]):
        roots = trace.unions.find(trace.axes[weight, axis]).tolist() if (weight, axis) in trace.axes else []
        if any(root in numbers for root in roots):
            continue
        reasons = [reason for root in roots if (reason := trace.unions.reason(root))]
        found.setdefault(module_of(weight), reasons[0] if reasons else "its outputs are tied to a layer that keeps its width")
    return [NotPrunable(name, reason) for name, reason in found.items()]


def _numbers(trace: Trace, labels: Labels, numbers: dict[int, int]) -> NDArray[np.int64]:
    roots = trace.unions.find(labels)
    return np.asarray([numbers.get(root, ALWAYS) for root in roots.ravel().tolist()], dtype=np.int64).reshape(roots.shape)


def _numbered(terms: tuple[Count, ...] | Places, trace: Trace, numbers: dict[int, int]) -> tuple[Count, ...] | Places:
    """`terms` with channel numbers in place of labels."""

    def numbered(labels: tuple[Labels, ...]) -> tuple[Labels, ...]:
        return tuple(_numbers(trace, part, numbers) for part in labels)

    if isinstance(terms, Places):
        return Places(terms.indices, numbered(terms.source), tuple(numbered(labels) for labels in terms.axes))
    return tuple(Count(term.fixed, numbered(term.labels)) for term in terms)


def _moves(terms: tuple[Count, ...] | Places) -> bool:
    """Whether a plan can change the constants."""
    if isinstance(terms, Places):
        return any(part.any() for part in terms.source)
    return any(part.any() for term in terms for part in term.labels)
