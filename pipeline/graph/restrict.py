"""Restrict: leave out the groups that the user wants to keep whole, before the others are proven."""

from collections.abc import Container
from dataclasses import replace

from pipeline.core.plan import Group, NotPrunable, layer_of
from pipeline.core.restriction import Restriction, refuse_unmatched
from pipeline.errors import NothingToPrune
from pipeline.graph.labels.space import GraphSpace

__all__ = ["layers_of", "restrict", "restrict_blocks"]

_PARTS = ("weight", "bias", "running_mean", "running_var")
"""Last part of the names of tensors that belong to a layer."""


def restrict(labelled: GraphSpace, restriction: Restriction, constants: Container[str]) -> GraphSpace:
    """Return `labelled` without the groups that `restriction` keeps whole. The others get their smallest width.

    `constants` are the initializers that are not learnable; those that are not part of a layer have no name that a user knows.
    Raises ModelError if a pattern matches no layer, and NothingToPrune if no group is left.
    """
    space = labelled.space
    layers = {group.name: layers_of(group, labelled, constants) for group in space.groups}
    refuse_unmatched(
        restriction, [*(name for names in layers.values() for name in names), *(layer.name for layer in space.frozen)]
    )
    reasons = {name: restriction.reason_to_keep(found) for name, found in layers.items()}
    kept = tuple(NotPrunable(name, reason) for name, reason in reasons.items() if reason)
    if kept and len(kept) == len(space.groups):
        raise NothingToPrune(
            f"--freeze and --only leave no layer to prune ({kept[0].name}: {kept[0].reason}); leave out a pattern"
        )
    groups = tuple(replace(group, fewest=restriction.fewest(layers[group.name], group.channels)) for group in space.groups)
    labelled = replace(labelled, space=replace(space, groups=groups))
    return labelled.restricted({name for name, reason in reasons.items() if not reason}, kept)


def restrict_blocks(labelled: GraphSpace, restriction: Restriction) -> GraphSpace:
    """Return `labelled` without the blocks of which the user wants to keep a layer."""
    kept, refused = [], []
    for block in labelled.space.blocks:
        heads = (tensor.rpartition(".") for tensor in block.tensors)
        layers = dict.fromkeys(head if last in _PARTS else f"{head}.{last}".strip(".") for head, _, last in heads)
        reason = restriction.reason_to_keep_block(layers)
        if reason is None:
            kept.append(block)
        else:
            refused.append(NotPrunable(block.name, reason))
    return labelled.with_blocks(kept, refused)


def layers_of(group: Group, labelled: GraphSpace, constants: Container[str] = ()) -> tuple[str, ...]:
    """The layers that make or carry the channels of a group, from its first one on: convolutions and normalisation layers.

    A layer that only reads the channels is not among them.
    """
    names = [layer_of(group.name)]
    for slot in group.slots:
        head, _, last = slot.tensor.rpartition(".")
        is_part = bool(head) and last in _PARTS
        if (slot.tensor, slot.axis) not in labelled.reads and (is_part or slot.tensor not in constants):
            names.append(head if is_part else slot.tensor)
    return tuple(dict.fromkeys(names))
