"""Search space: the widths that a searcher may choose from, for each group of a network, and the blocks that it may drop."""

from torch import nn

from pipeline.core.alignment import Alignment
from pipeline.core.plan import Block, PruneSpace, layer_of
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.search.problem import Choice, Layer, SearchSpace, widths_of

__all__ = ["search_space"]


def search_space(builder: PrunedModelBuilder, step: int, alignment: Alignment | None = None) -> SearchSpace:
    """The widths to choose from and the cost share of each group, and the blocks to drop.

    Widths that are dominated in `alignment` are left out.
    """
    space = builder.space
    widths = {
        group.name: tuple(
            width
            for width in widths_of(group.channels, group.bundle, step)
            if width >= group.fewest and (not alignment or group.bundle > 1 or width not in alignment.dominated(group.channels))
        )
        for group in space.groups
    }
    whole = builder.make(space.dense())
    layers = dict(builder.module.named_modules())
    dense = dict(space.dense())
    choices = {}
    for group in space.groups:
        alone = builder.make(space.plan(dense | {group.name: widths[group.name][0]}))
        choices[group.name] = Choice(
            name=group.name,
            channels=group.channels,
            widths=widths[group.name],
            macs_share=1 - alone.macs / max(whole.macs, 1),
            params_share=1 - alone.params / max(whole.params, 1),
            layer=_layer(layers.get(layer_of(group.name))),
        )
    order = _in_order(space)
    for block in space.blocks:
        alone = builder.make(space.plan(dense, [block.name]))
        choices[block.name] = Choice(
            name=block.name,
            channels=1,
            widths=(0, 1),
            macs_share=1 - alone.macs / max(whole.macs, 1),
            params_share=1 - alone.params / max(whole.params, 1),
            is_block=True,
            contents=tuple(name for name in order if name in {*block.groups, *block.inside}),
        )
    return SearchSpace(tuple(choices[name] for name in order))


def _in_order(space: PruneSpace) -> list[str]:
    """The groups in their order. A block comes before the first group inside it, and is followed by all that is inside it."""
    order: list[str] = []
    placed: set[str] = set()
    outer = sorted(space.blocks, key=lambda block: -len(block.inside))  # stable: blocks of one level stay in order

    def place(block: Block) -> None:
        order.append(block.name)
        placed.add(block.name)
        fill([group.name for group in space.groups if group.name in block.groups], set(block.inside))

    def fill(groups: list[str], blocks: set[str]) -> None:
        for group in groups:
            for block in outer:
                if block.name in blocks - placed and group in block.groups:
                    place(block)
            if group not in placed:
                order.append(group)
                placed.add(group)
        for block in outer:
            if block.name in blocks - placed:
                place(block)

    fill([group.name for group in space.groups], {block.name for block in space.blocks})
    return order


def _layer(module: nn.Module | None) -> Layer:
    if not isinstance(module, nn.Conv2d):
        return Layer(getattr(module, "in_features", 0))
    padding = (0, 0) if isinstance(module.padding, str) else module.padding
    kernel, stride, padding = ((int(each[0]), int(each[1])) for each in (module.kernel_size, module.stride, padding))
    return Layer(module.in_channels, kernel, stride, padding)
