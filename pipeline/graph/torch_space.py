"""Torch space: what can be pruned in the trainable graph, in the deployed graph and in the torch module alike."""

from collections.abc import Container, Mapping
from dataclasses import replace

import onnx

from pipeline.core.plan import NotPrunable, PruneSpace, Slot
from pipeline.graph.blocks import find_blocks
from pipeline.graph.labels.space import GraphSpace, module_of
from pipeline.graph.to_torch import TorchTensor

__all__ = ["in_both", "torch_space"]


def in_both(trainable: GraphSpace, deployed: GraphSpace, folded: onnx.ModelProto) -> tuple[GraphSpace, GraphSpace]:
    """Both spaces with only the groups and blocks that are the same in both. `folded` is the deployed graph."""
    widths = {group.name: group.channels for group in deployed.space.groups}
    names = [group.name for group in trainable.space.groups if widths.get(group.name) == group.channels]
    lost = tuple(
        NotPrunable(group.name, "folding its normalisation layers couples it to others")
        for group in trainable.space.groups
        if group.name not in names
    )
    ends = {(block.node, block.entry): block for block in (find_blocks(folded)[0] if trainable.space.blocks else ())}
    same = [block for block in trainable.space.blocks if (block.node, block.entry) in ends]
    changed = tuple(
        NotPrunable(block.name, "the block cannot be dropped: folding its normalisation layers changes it")
        for block in trainable.space.blocks
        if block not in same
    )
    of_folded = [replace(block, tensors=ends[block.node, block.entry].tensors) for block in same]
    trainable = trainable.restricted(names, lost).with_blocks(same, changed)
    deployed = deployed.restricted(names, ()).with_blocks(of_folded)
    # the deployed graph has no notes on modules, and was not tried, so its own reasons say less
    return trainable, replace(deployed, space=replace(deployed.space, frozen=trainable.space.frozen))


def torch_space(labelled: GraphSpace, tensors: Mapping[str, TorchTensor], constants: Container[str] = ()) -> PruneSpace | str:
    """The groups with slots on the tensors of a state dict; or the layer whose initializer has no tensor of its own.

    `constants` are initializers that the user's code makes, such as the ones and zeros of GroupNorm. They need no tensor.
    """
    groups = []
    for group in labelled.space.groups:
        slots = []
        for slot in group.slots:
            place = tensors.get(slot.tensor)
            if place is None and slot.tensor in constants:
                continue  # the user's code makes it; the comparison shows whether with the right length
            if place is None or place.axes[slot.axis] < 0:
                return module_of(slot.tensor)
            slots.append(Slot(place.name, place.axes[slot.axis], slot.entries, slot.channels))
        groups.append(replace(group, slots=tuple(slots)))
    blocks = tuple(
        replace(block, tensors=tuple(tensors[name].name for name in block.tensors if name in tensors))
        for block in labelled.space.blocks
    )
    return PruneSpace(tuple(groups), labelled.space.frozen, blocks)
