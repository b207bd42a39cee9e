"""Normalisation: functions for the layers whose statistics or scales are not plain weights of the graph."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node, normal_axis
from pipeline.graph.to_torch.ops.elementwise import Op

__all__ = ["NORMALISATION"]


def _per_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape([-1] + [1] * (x.dim() - 2))


def _batch(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Only reached where the statistics are not one module's own. They stay as they are."""
    return F.batch_norm(x, mean, variance, scale, bias, eps=node.float("epsilon", 1e-5))


def _instance(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.float("epsilon", 1e-5))


def _group(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.int("num_groups", 1)
    if node.opset < 21:  # one scale per group
        repeats = x.shape[1] // groups
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
    return F.group_norm(x, groups, scale, bias, node.float("epsilon", 1e-5))


def _layer(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
    axis = normal_axis(node.int("axis", -1), x.dim())
    axes = list(range(axis, x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = (x - mean).square().mean(axes, keepdim=True).add(node.float("epsilon", 1e-5)).rsqrt()
    found = (x - mean) * inverse * scale
    found = found if bias is None else found + bias
    return (found, mean, inverse) if len(node.outputs) > 1 else found


def _root_mean_square(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = normal_axis(node.int("axis", -1), x.dim())
    mean = x.square().mean(list(range(axis, x.dim())), keepdim=True)
    return x * (mean + node.float("epsilon", 1e-5)).rsqrt() * scale


def _mean_variance(node: Node, x: Tensor) -> Tensor:
    axes = node.ints("axes") or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


NORMALISATION: dict[str, Op] = {
    "BatchNormalization": _batch,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _root_mean_square,
}
