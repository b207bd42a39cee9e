"""Search space: the widths that a searcher may choose from, for each group of a network."""

from torch import nn

from pipeline.core.alignment import Alignment
from pipeline.core.plan import ChannelPlan, layer_of
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.search.problem import Choice, Layer, SearchSpace, widths_of

__all__ = ["search_space"]


def search_space(builder: PrunedModelBuilder, step: int, alignment: Alignment | None = None) -> SearchSpace:
    """The widths to choose from and the cost share of each group. Widths that are dominated in `alignment` are left out."""
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
    choices = []
    for group in space.groups:
        alone = builder.make(
            ChannelPlan(tuple((name, widths[name][0] if name == group.name else width) for name, width in space.dense()))
        )
        choices.append(
            Choice(
                name=group.name,
                channels=group.channels,
                widths=widths[group.name],
                macs_share=1 - alone.macs / max(whole.macs, 1),
                params_share=1 - alone.params / max(whole.params, 1),
                layer=_layer(layers.get(layer_of(group.name))),
            )
        )
    return SearchSpace(tuple(choices))


def _layer(module: nn.Module | None) -> Layer:
    if not isinstance(module, nn.Conv2d):
        return Layer(getattr(module, "in_features", 0))
    padding = (0, 0) if isinstance(module.padding, str) else module.padding
    kernel, stride, padding = ((int(each[0]), int(each[1])) for each in (module.kernel_size, module.stride, padding))
    return Layer(module.in_channels, kernel, stride, padding)
