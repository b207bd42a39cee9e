"""Reconstruct in turn: adapt the layers of a network without some of its blocks, one after the other, by least squares.

Without a block, the layers behind it read other inputs than in the dense network. Linear regression predicts the dense network's
inputs of a layer x from those of the pruned network x' as x = (E + A) x' + b, where E puts each kept channel in its place. The
weights W become W (E + A), so the outputs of the layer stay close to those of the dense network. While a layer is fitted, the
layers before it are finished. He et al., arXiv 1707.06168, section 3.1, fit the layers of a network with fewer channels in this
order.

Both networks run on the same pictures, and BatchNorm uses the statistics of these pictures, because they are estimated again
before a network is scored. So nothing changes before the first dropped block.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.batch import Inputs, outputs_of
from pipeline.core.compute_device import placed
from pipeline.core.plan import Kept, PruneSpace

__all__ = ["DenseInputs", "record_dense_inputs", "relative_difference", "room_for"]

Columns = NDArray[np.int64]
Rows = Callable[[nn.Module, Tensor, Columns], Tensor]
"""(layer, its input, columns) -> the input as samples of its channels, (samples, C)."""

PICTURES = 512
MOST_VALUES = 2**23
"""Largest number of values of the pictures. All of them run at once, and features take about thirty times as much memory."""
MOST_ROWS = 2**13
"""Largest number of samples of a layer."""
WORST = 1e9
"""The difference of outputs that are not finite."""
MOST_RECORDED = 2**26
"""Largest number of values of all samples together: 256 MB."""


@dataclass(frozen=True)
class DenseInputs:
    """What the layers of the dense network read, at some pixels of some pictures."""

    module: nn.Module
    pictures: Inputs
    """(N, C, H, W)"""
    columns: Mapping[str, Columns]
    """Layer -> the entries of its weight's input axis that belong to each channel, (C, k)."""
    samples: Mapping[str, Tensor]
    """Layer -> its inputs, (samples, C)."""
    limit: int
    """Largest number of samples of a layer."""
    rows: Rows
    ridge: float
    outputs: tuple[Tensor, ...]
    """Of the dense network for the pictures."""

    def fit(self, small: nn.Module, space: PruneSpace, kept: Kept) -> float:
        """Adapt the weights of `small`, the network pruned to `kept`, in place.

        Returns the mean squared difference of its outputs for the pictures, as a share of the variance of the dense network's. It
        is the mean over the outputs if there are several.
        """

        def adapt(name: str, layer: nn.Module, read: Tensor) -> None:
            whole = self.module.get_submodule(name).get_parameter("weight").detach()
            remaining = space.remaining(f"{name}.weight", 1, whole.shape[1], kept)
            columns = self.columns[name]
            kept_channels = np.isin(columns[:, 0], remaining)
            places = np.searchsorted(remaining, columns[kept_channels])
            now = _sampled(self.rows(layer, read, places), self.limit).cpu().double()
            if len(now) != len(self.samples[name]):
                return  # it is another call than in the dense network
            outputs = torch.from_numpy(space.remaining(f"{name}.weight", 0, whole.shape[0], kept))
            by_channel = whole[outputs].double()[:, torch.from_numpy(columns)]  # (outputs, C, k, kernel...)
            missing, stays = self.samples[name].double(), torch.from_numpy(kept_channels)
            missing[:, stays] -= now
            _adapt(layer, by_channel, missing, now, (stays, places), self.ridge)

        with torch.no_grad():
            outputs = _run_seen(small, self.samples, self.pictures, adapt)
        shares = [relative_difference(dense, now) for dense, now in zip(self.outputs, outputs, strict=True)]
        return sum(shares) / len(shares)


def room_for(pictures: list[Inputs], pixels: Inputs) -> int:
    """How many of `pixels`, (N, C, H, W), can be added to `pictures`."""
    most = min(PICTURES, MOST_VALUES // max(pixels[:1].numel(), 1))
    return max(most - sum(map(len, pictures)), 0)


def record_dense_inputs(
    module: nn.Module, pictures: Inputs, columns: Mapping[str, Columns], rows: Rows, ridge: float
) -> DenseInputs:
    """Run `module`, the dense network, on `pictures` and record what the layers in `columns` read.

    Layers that run several times, or get their input by keyword, are left out.
    """
    limit = min(MOST_ROWS, max(MOST_RECORDED // max(sum(len(each) for each in columns.values()), 1), 1))
    samples: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def record(name: str, layer: nn.Module, read: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1
        samples[name] = _sampled(rows(layer, read, columns[name]), limit).cpu().clone()

    with torch.no_grad():
        outputs = _run_seen(module, columns, pictures, record)
    once = {name: found for name, found in samples.items() if calls[name] == 1}
    return DenseInputs(module, pictures, columns, once, limit, rows, ridge, outputs)


def relative_difference(dense: Tensor, now: Tensor) -> float:
    """Return the mean squared difference of an output, (N, ...), as a share of the variance over pictures."""
    variance = max(float((dense.double() - dense.double().mean(0)).square().mean()), 1e-12)
    share = float((now.double() - dense.double()).square().mean()) / variance
    return min(share, WORST) if math.isfinite(share) else WORST


def _adapt(layer: nn.Module, weights: Tensor, missing: Tensor, now: Tensor, kept: tuple[Tensor, Columns], ridge: float) -> None:
    """Fit `missing` (samples, C), what the inputs lack, by `now` (samples, kept C), and change the weights of `layer`, in place.

    `weights` are those of the dense network, (outputs, C, k, kernel...). `kept` says which channels are kept, (C,), and which
    entries of the input axis belong to each of them, (kept C, k).
    """
    (stays, places), target = kept, missing
    if not torch.isfinite(target).all() or not bool(target.abs().max() > 0):
        return
    means = now.mean(0), target.mean(0)
    centred = now - means[0]
    gram = centred.T @ centred / len(now)
    # with few samples, a regression follows their noise, and the weights are better left as they are
    weight_of_ridge = (ridge + now.shape[1] / len(now)) * float(gram.diagonal().mean()) + 1e-12
    gram = gram + weight_of_ridge * torch.eye(len(gram), dtype=gram.dtype)
    change = torch.linalg.solve(gram, centred.T @ (target - means[1]) / len(now))  # (kept C, C)
    added = torch.einsum("oc...,kc->ok...", weights, change)
    if not torch.isfinite(added).all():
        return
    weight = layer.get_parameter("weight")
    weight[:, torch.from_numpy(places).to(weight.device)] = (weights[:, stays] + added).to(weight)
    if getattr(layer, "bias", None) is not None:
        layer.get_parameter("bias").add_((weights.flatten(2).sum(2) @ (means[1] - change.T @ means[0])).to(weight))


def _sampled(rows: Tensor, count: int) -> Tensor:
    """At most `count` of the rows, spread evenly. They are the same ones for every input of the same length."""
    step = -(-len(rows) // count)
    while step > 1 and math.gcd(step, len(rows)) > 1:  # a common divisor would sample only some columns of the features
        step += 1
    return rows[::step]


def _run_seen(
    module: nn.Module, names: Iterable[str], pictures: Inputs, see: Callable[[str, nn.Module, Tensor], None]
) -> tuple[Tensor, ...]:
    """Run `module` with the statistics of `pictures`, and call `see` before each of the layers `names` that gets its input by
    position. Returns the outputs.
    """
    layers = dict(module.named_modules())

    def seeing(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, read: see(name, layer, read[0].detach()) if read else None

    present = [name for name in names if name in layers]  # the layers of dropped blocks are not
    hooks = [layers[name].register_forward_pre_hook(seeing(name)) for name in present]
    try:
        with placed(module) as device, _statistics_of_the_batch(module):
            answer = module(pictures.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(output.cpu() for output in outputs_of(answer))


@contextmanager
def _statistics_of_the_batch(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm use the statistics of each batch inside the block, and keep its own. Sets evaluation mode for the rest."""
    module.eval()
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    known = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.training, norm.momentum, norm.num_batches_tracked = True, 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, known, strict=True):
            norm.training, norm.momentum, norm.num_batches_tracked = False, momentum, count
