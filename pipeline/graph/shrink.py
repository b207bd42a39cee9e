"""Shrink: copy a module with only the kept channels and blocks. The original module is not changed."""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.core.plan import Block, ChannelPlan, Kept, PruneSpace
from pipeline.errors import WeightsError, one_line
from pipeline.graph.skip_block import replacements
from pipeline.graph.to_torch import GraphNetwork

__all__ = ["all_channels", "keep_channels", "layer_groups_of", "rebuild", "scatter_gradients", "shrink"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def all_channels(space: PruneSpace) -> Kept:
    """Return all channels of every group."""
    return {group.name: tuple(range(group.channels)) for group in space.groups}


def keep_channels(plan: ChannelPlan, ranking: Mapping[str, tuple[int, ...]]) -> Kept:
    """Return what `plan` keeps: the most important channels of each group. `ranking` is sorted by importance."""
    return {name: tuple(sorted(ranking[name][:width])) for name, width in plan} | dict.fromkeys(plan.dropped, ())


def shrink(module: nn.Module, space: PruneSpace, kept: Kept) -> nn.Module:
    """Return a copy of `module` in which every group has only the `kept` channels, without the dropped blocks.

    Weights are copied, not shared.
    """
    dropped = space.dropped(kept)
    gone = {name for block in dropped for name in block.tensors}
    tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    smaller = replacements(module, dropped)
    for name, axes in space.axes.items():
        if name in gone:
            continue
        tensor = tensors[name].detach()
        for axis in axes:
            index = space.remaining(name, axis, tensor.shape[axis], kept)
            if len(index) < tensor.shape[axis]:
                tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
        if tensor.shape != tensors[name].shape:
            smaller[id(tensors[name])] = _like(tensors[name], tensor)
    # deepcopy uses what is in the memo instead of copying the originals, so no large tensor is copied whole
    result = copy.deepcopy(module, smaller)
    _follow_shapes(result, _groups_left(module, space, kept))
    for inner in result.modules():
        if isinstance(inner, GraphNetwork):
            inner.keep(kept)
    return result


def scatter_gradients(small: nn.Module, whole: nn.Module, space: PruneSpace, kept: Kept) -> None:
    """Add the gradients of `small` to the gradients of `whole`, entry by entry. `small` is `whole` pruned to `kept`."""
    tensors = dict(whole.named_parameters())
    names = {id(tensor): name for name, tensor in whole.named_parameters(remove_duplicate=False) if name in space.axes}
    for name, parameter in small.named_parameters():
        target = tensors[name].grad
        if parameter.grad is None or target is None:
            continue
        if parameter.shape == target.shape:
            target += parameter.grad
            continue
        known = names.get(id(tensors[name]))  # a tensor may have several names, of which the space knows one
        index = [torch.arange(size, device=target.device) for size in target.shape]
        for axis in space.axes[known] if known else ():
            index[axis] = torch.from_numpy(space.remaining(str(known), axis, target.shape[axis], kept)).to(target.device)
        target[torch.meshgrid(*index, indexing="ij")] += parameter.grad


def rebuild(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    layer_groups: Mapping[str, int] | None = None,
    dropped: Iterable[Block] = (),
) -> nn.Module:
    """Return a copy of `module`, as its factory made it, pruned to the shapes of `tensors`, a state dict, and filled with them.

    `layer_groups` is what `layer_groups_of` found for the pruned module; shapes alone do not say how many groups are left.
    `dropped` are the blocks that the copy does not have. Raises WeightsError when a name is missing or unknown, or when a tensor
    is larger than in `module`.
    """
    try:
        without = replacements(module, dropped)
    except AttributeError as problem:
        raise WeightsError(
            f"a dropped block is not in the network ({one_line(problem, 120)}); use the factory that was compressed"
        ) from None
    if without:
        module = copy.deepcopy(module, without)
    state = module.state_dict()
    if set(state) != set(tensors):
        odd = sorted(set(state) ^ set(tensors))[0]
        raise WeightsError(f"'{odd}' is in only one of the network and the weights; use the factory that was compressed")
    for name, tensor in tensors.items():
        if tensor.dim() != state[name].dim() or any(a > b for a, b in zip(tensor.shape, state[name].shape, strict=True)):
            raise WeightsError(
                f"'{name}' is {tuple(tensor.shape)} in the weights and {tuple(state[name].shape)} in the network; "
                "use the factory that was compressed"
            )
    originals = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    memo: dict[int, object] = {id(originals[name]): _like(originals[name], tensor.clone()) for name, tensor in tensors.items()}
    result = copy.deepcopy(module, memo)
    _follow_shapes(result, {**dict.fromkeys(layer_groups_of(module), 1), **layer_groups} if layer_groups else {})
    return result


def layer_groups_of(module: nn.Module, dense: nn.Module | None = None) -> dict[str, int]:
    """Grouped layer -> its number of groups in `module`. A layer that has one group in `dense` too is left out.

    `dense` is the network that was pruned to `module`; without it, all layers with one group are left out.
    """
    grouped = set() if dense is None else set(layer_groups_of(dense))
    found = ((name, _groups_of(layer)) for name, layer in module.named_modules())
    return {name: groups for name, groups in found if groups > 1 or name in grouped}


def _groups_of(layer: nn.Module) -> int:
    if isinstance(layer, CONVS):
        return int(layer.groups)
    return int(layer.num_groups) if isinstance(layer, nn.GroupNorm) else 1


def _groups_left(module: nn.Module, space: PruneSpace, kept: Kept) -> dict[str, int]:
    """Grouped layer -> the number of its groups that keep channels, where every group is kept or removed as a whole.

    The output channels of a grouped layer, or the inputs of a transposed convolution, are on axis 0 of its weight.
    """
    known = {id(tensor): name for name, tensor in module.named_parameters(remove_duplicate=False) if name in space.axes}
    found = {}
    for name, layer in module.named_modules():
        groups, weight = _groups_of(layer), getattr(layer, "weight", None)
        tensor = known.get(id(weight))
        if groups > 1 and tensor is not None and weight is not None:
            stays = np.zeros(len(weight), dtype=bool)
            stays[space.remaining(tensor, 0, len(weight), kept)] = True
            of_group = stays.reshape(groups, -1)
            whole = bool((of_group.all(1) == of_group.any(1)).all())
            found[name] = int(of_group.any(1).sum()) if whole else groups
    return found


def _like(original: Tensor, data: Tensor) -> Tensor:
    if isinstance(original, nn.Parameter):
        return nn.Parameter(data, requires_grad=original.requires_grad)
    return data


def _follow_shapes(module: nn.Module, layer_groups: Mapping[str, int]) -> None:
    """Update the layer attributes that repeat the shape of the weights, such as `in_channels`.

    A layer that `layer_groups` does not name keeps its number of groups, unless it is a depthwise convolution.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, CONVS):
            one, other = layer.weight.shape[:2]
            depthwise = layer.groups == layer.in_channels > 1  # with one or more outputs for each input
            if layer.transposed:
                layer.groups = layer_groups.get(name, one if depthwise else layer.groups)
                layer.in_channels, layer.out_channels = one, other * layer.groups
            else:
                each = layer.out_channels // layer.in_channels if depthwise else 1
                layer.groups = layer_groups.get(name, one // each if depthwise else layer.groups)
                layer.in_channels, layer.out_channels = other * layer.groups, one
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, NORMS):
            tensor = layer.weight if layer.weight is not None else layer.running_mean
            layer.num_features = len(tensor) if tensor is not None else layer.num_features
        elif isinstance(layer, nn.LayerNorm) and layer.weight is not None:
            layer.normalized_shape = tuple(layer.weight.shape)
        elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
            layer.num_channels = len(layer.weight)
            layer.num_groups = layer_groups.get(name, layer.num_groups)
        elif isinstance(layer, nn.RNNBase):
            layer.input_size = layer.get_parameter("weight_ih_l0").shape[1]
        elif isinstance(layer, nn.PReLU):
            layer.num_parameters = len(layer.weight)
