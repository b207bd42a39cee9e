"""Reconstruct: adapt the weights of the kept channels by least squares, so that they replace the removed ones.

The inputs of a layer are correlated. Linear regression predicts the removed inputs x_R from the kept ones x_K as
x_R = A x_K + b. The weights W become W_K + W_R A, which keeps the layer's output close to the original. This follows He et
al., arXiv 1707.06168, section 3.1, step ii, with moments taken once and not per plan. It takes milliseconds and no labels.

Without a block, the layers behind it read something else. They are fitted one after the other; see `reconstruct_in_turn.py`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.batch import Inputs, joined
from pipeline.core.compute_device import placed
from pipeline.core.plan import Kept, PruneSpace, Slot
from pipeline.core.progress import Progress, no_progress
from pipeline.graph.reconstruct_in_turn import DenseInputs, record_dense_inputs, room_for
from pipeline.graph.shrink import CONVS, all_channels, shrink

__all__ = ["Reconstruction", "start_reconstruction"]

RIDGE = 1e-2
"""Ridge term on the diagonal, as a share of the mean variance. It is needed because the moments come from few images."""
ROWS = 2**16
"""Largest number of pixels of one batch from which a layer's moments are computed."""
PICTURES_OF_BLOCKS = 128
"""Largest number of pictures on which blocks are compared."""
WIDEST = 4096
"""Largest number of inputs that are treated one by one, without channels. More would need a matrix of more than 100 MB."""


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the input channels of one layer of the dense network."""

    columns: NDArray[np.int64]
    """(C, k): the entries of the weight's input axis that belong to each channel. k > 1 after a flatten."""
    mean: Tensor
    """(C,)"""
    covariance: Tensor
    """(C, C)"""


@dataclass(frozen=True)
class Reconstruction:
    """Adapts pruned versions of one network, for any plan."""

    module: nn.Module
    space: PruneSpace
    moments: Mapping[str, Moments]
    """Layer with prunable input channels -> moments of its inputs."""
    pictures: Inputs | None = None
    """Inputs, (N, C, H, W), if there are blocks that can be dropped."""

    def apply(self, small: nn.Module, kept: Kept) -> None:
        """Adapt the weights of `small`, the network pruned to `kept`, in place."""
        if self.space.dropped(kept) and self._dense_inputs is not None:
            self._dense_inputs.fit(small, self.space, kept)
            return
        layers = dict(small.named_modules())
        with torch.no_grad():
            for name, moments in self.moments.items():
                if name in layers:  # the layers of dropped blocks are not
                    self._adapt(layers[name], name, moments, kept)

    def block_errors(self, progress: Progress = no_progress) -> dict[str, float]:
        """Return by name what dropping each block alone costs, after the layers behind it were adapted; see `DenseInputs.fit`.

        Empty if there are no blocks, or too few pictures. A part of the pictures is enough to tell blocks apart.
        """
        dense_inputs = self._dense_inputs_of(PICTURES_OF_BLOCKS)
        if dense_inputs is None:
            return {}
        whole = all_channels(self.space)
        found = {}
        for number, block in enumerate(self.space.blocks):
            progress(number, len(self.space.blocks), f"dropping {block.name}")
            kept = {**whole, block.name: ()}
            found[block.name] = dense_inputs.fit(shrink(self.module, self.space, kept).eval(), self.space, kept)
        return found

    @cached_property
    def _dense_inputs(self) -> DenseInputs | None:
        return self._dense_inputs_of(None)

    def _dense_inputs_of(self, most: int | None) -> DenseInputs | None:
        if self.pictures is None or len(self.pictures) < 2:  # one picture has no variance
            return None
        return record_dense_inputs(self.module, self.pictures[:most], _all_columns(self.module, self.space), _rows, RIDGE)

    def _adapt(self, layer: nn.Module, name: str, moments: Moments, kept: Kept) -> None:
        whole = self.module.get_submodule(name).get_parameter("weight").detach()
        remaining = self.space.remaining(f"{name}.weight", 1, whole.shape[1], kept)
        stays = np.isin(moments.columns[:, 0], remaining)
        if stays.all():
            return
        keep, drop = torch.from_numpy(np.flatnonzero(stays)), torch.from_numpy(np.flatnonzero(~stays))
        covariance = moments.covariance
        among = covariance[keep][:, keep]
        among = among + (RIDGE * float(among.diagonal().mean()) + 1e-12) * torch.eye(len(keep), dtype=torch.float64)
        regression = torch.linalg.solve(among, covariance[keep][:, drop])  # (kept, dropped)
        outputs = self.space.remaining(f"{name}.weight", 0, whole.shape[0], kept)
        rows = whole[torch.from_numpy(outputs)].double()
        weights = rows[:, torch.from_numpy(moments.columns)]  # (outputs, C, k, kernel...)
        added = torch.einsum("od...,kd->ok...", weights[:, drop], regression)
        if not torch.isfinite(added).all():
            return
        places = torch.from_numpy(np.searchsorted(remaining, moments.columns[stays]))
        weight = layer.get_parameter("weight")
        weight[:, places] += added.to(weight.dtype)
        if layer.bias is not None:
            lost = moments.mean[drop] - regression.T @ moments.mean[keep]
            layer.get_parameter("bias").add_((weights[:, drop].flatten(2).sum(2) @ lost).to(weight.dtype))


def start_reconstruction(module: nn.Module, space: PruneSpace, inputs: Iterable[Inputs]) -> Reconstruction:
    """Compute the moments from batches of `inputs`, (N, C, H, W). The network is set to evaluation mode.

    Layers whose weights do not require gradients are not adapted.
    """
    layers = dict(module.named_modules())
    readers = _readers(space)
    columns = {name: found for name, found in _all_columns(module, space).items() if name in readers}
    pictures: list[Inputs] = []
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def add(name: str, read: tuple[Tensor, ...]) -> None:
        if not read:  # the hook does not see keyword arguments, so such a layer is not adapted
            return
        rows = _rows(layers[name], read[0].detach(), columns[name])
        rows = rows[:: -(-len(rows) // ROWS)].float()
        mean, square, count = sums.get(name, (torch.zeros(()), torch.zeros(()), 0))
        sums[name] = mean + rows.double().sum(0).cpu(), square + (rows.T @ rows).double().cpu(), count + len(rows)

    handles = [layers[name].register_forward_pre_hook(lambda _, read, name=name: add(name, read)) for name in columns]
    module.eval()
    try:
        with placed(module) as device, torch.no_grad():
            for pixels in inputs:
                module(pixels.to(device))
                if space.blocks and (room := room_for(pictures, pixels)):
                    pictures.append(pixels[:room])
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for name, (total, square, count) in sums.items():
        mean = total / count
        moments[name] = Moments(columns[name], mean, square / count - torch.outer(mean, mean))
    return Reconstruction(module, space, moments, joined(pictures) if pictures else None)


def _all_columns(module: nn.Module, space: PruneSpace) -> dict[str, NDArray[np.int64]]:
    """Layer that can be adapted -> `_columns`. Its input channels may be prunable or not."""
    readers, columns = _readers(space), {}
    for name, layer in module.named_modules():  # without the second name of a layer that has two names
        if isinstance(layer, (*CONVS, nn.Linear)) and not getattr(layer, "transposed", False):
            found = _columns(layer, readers.get(name, []))
            if found is not None and getattr(layer, "groups", 1) == 1 and layer.weight.requires_grad:
                columns[name] = found
    return columns


def _readers(space: PruneSpace) -> dict[str, list[Slot]]:
    """Layer -> slots on the input axis of its weight."""
    readers: dict[str, list[Slot]] = {}
    for group in space.groups:
        for slot in group.slots:
            name, _, kind = slot.tensor.rpartition(".")
            if kind == "weight" and slot.axis == 1:
                readers.setdefault(name, []).append(slot)
    return readers


def _columns(layer: nn.Module, slots: list[Slot]) -> NDArray[np.int64] | None:
    """Entries of the input axis by channel, (C, k). None when the layer has more than WIDEST inputs and no channels."""
    size = int(layer.get_parameter("weight").shape[1])
    channels = np.asarray(slots[0].channels if slots else range(size))
    each = len(channels) // max(len(set(channels.tolist())), 1)
    # after a flatten, the entries of a channel are its pixels; the inputs of a convolution are channels of their own
    if isinstance(layer, nn.Linear) and len(slots) == 1 and len(channels) == size and each > 1:
        order = np.argsort(channels, kind="stable")
        if (channels[order].reshape(-1, each) == channels[order].reshape(-1, each)[:, :1]).all():
            return np.asarray(slots[0].entries)[order].reshape(-1, each)
    return np.arange(size).reshape(-1, 1) if size <= WIDEST else None


def _rows(layer: nn.Module, read: Tensor, columns: NDArray[np.int64]) -> Tensor:
    """Inputs of a layer as samples of its channels, (samples, C)."""
    if isinstance(layer, nn.Linear):
        apart = read.reshape(-1, read.shape[-1])[:, torch.from_numpy(columns).to(read.device)]  # (N, C, k)
        return apart.movedim(1, 2).flatten(0, 1)
    return read.movedim(1, -1).flatten(0, -2)
