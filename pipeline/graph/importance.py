"""Importance: rank the channels of each group, so that the least important are removed first."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import placed
from pipeline.core.plan import Group, Importance, PruneSpace, Slot
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.reconstruction_error import order_by_error
from pipeline.graph.shrink import CONVS, NORMS

__all__ = ["Batches", "rank"]

Batches = Iterable[tuple[Inputs, Tensor]]
"""Pairs of inputs, (N, C, H, W), and labels, (N,)."""


def rank(module: nn.Module, space: PruneSpace, kind: Importance, batches: Batches) -> dict[str, tuple[int, ...]]:
    """Return the channels of each group, most important first, by group name.

    l1, l2      norm of all convolution and linear weights of a channel (Li et al., arXiv 1608.08710, over the
                coupled layers as in Fang et al., arXiv 2301.12900)
    bn          size of the normalisation scales (Liu et al., arXiv 1708.06519); l1 for a group that has none
    taylor      |sum of weight x gradient| over a channel, with the gradient of the loss over `batches`
                (Molchanov et al., arXiv 1906.10771, group criterion); uses `batches`
    reconstruction
                the error that is left after the other channels have replaced it by least squares, over `batches`; labels
                are not used; see `pipeline.graph.reconstruction_error`

    The scores of each coupled layer are divided by their mean before they are added, so that a wide layer does not outweigh a
    narrow one; `reconstruction` has its own shares. In a tie, the channel with the lower index comes first.
    """
    if kind == "reconstruction":
        return order_by_error(
            start_reconstruction(module, space, (images for images, _ in batches)), rank(module, space, "l2", ())
        )
    gradients = _gradients(module, batches) if kind == "taylor" else {}
    order = {}
    for group in space.groups:
        scores = _group_scores(module, group, kind, gradients)
        order[group.name] = tuple(torch.sort(scores, descending=True, stable=True).indices.tolist())
    return order


def _group_scores(module: nn.Module, group: Group, kind: Importance, gradients: dict[str, Tensor]) -> Tensor:
    tensors = dict(module.named_parameters())
    layers = dict(module.named_modules())
    scales = [slot for slot in group.slots if _is_scale(slot, layers)]
    weights = [
        slot for slot in group.slots if slot.tensor in tensors and tensors[slot.tensor].dim() > 1 and _is_weight(slot, layers)
    ]
    slots = scales if kind == "bn" and scales else weights
    total = torch.zeros(group.channels, dtype=torch.float64)
    for slot in slots:
        values = tensors[slot.tensor].detach().double()
        if kind == "taylor":
            values = values * gradients[slot.tensor].double()
        scores = _by_channel(values, slot, group.channels, kind)
        total += scores / scores.mean().clamp_min(1e-12)
    return total


def _by_channel(values: Tensor, slot: Slot, channels: int, kind: Importance) -> Tensor:
    rows = values.movedim(slot.axis, 0).flatten(1) if values.dim() > 1 else values[:, None]
    if kind == "taylor":
        per_entry = rows.sum(1)
    elif kind == "l2":
        per_entry = rows.square().sum(1)
    else:
        per_entry = rows.abs().sum(1)
    per_entry = per_entry[torch.tensor(slot.entries)].cpu()
    summed = torch.zeros(channels, dtype=torch.float64).index_add_(0, torch.tensor(slot.channels), per_entry)
    if kind == "taylor":
        return summed.abs()  # absolute value after the sum: opposite effects of a channel's entries on the loss cancel out
    return summed.sqrt() if kind == "l2" else summed


def _gradients(module: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Gradient of the cross-entropy for each parameter, summed over batches, with the network in evaluation mode."""
    module.eval()
    total: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    before = {name: tensor.requires_grad for name, tensor in module.named_parameters()}
    module.requires_grad_(True)
    try:
        with placed(module) as device:
            names = dict(module.named_parameters())
            for images, labels in batches:
                loss = nn.functional.cross_entropy(module(images.to(device)), labels.to(device))
                found = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
                for (name, tensor), gradient in zip(names.items(), found, strict=True):
                    total[name] = total[name] + (torch.zeros_like(tensor) if gradient is None else gradient).cpu()
    finally:
        for name, tensor in module.named_parameters():
            tensor.requires_grad_(before[name])
    return dict(total)


def _is_scale(slot: Slot, layers: dict[str, nn.Module]) -> bool:
    name, _, kind = slot.tensor.rpartition(".")
    return kind == "weight" and isinstance(layers.get(name), NORMS)


def _is_weight(slot: Slot, layers: dict[str, nn.Module]) -> bool:
    name, _, kind = slot.tensor.rpartition(".")
    return kind == "weight" and isinstance(layers.get(name), (*CONVS, nn.Linear))
