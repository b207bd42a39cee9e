"""Elementwise ops: one torch function per op that works on each value alone."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node

__all__ = ["BROADCAST", "POINTWISE", "Op"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""(node, inputs of the node) -> its output, or all its outputs. An absent input is None."""


def _plain(function: Callable[[Tensor], Tensor]) -> Op:
    return lambda node, x: function(x)


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    return lambda node, a, b: function(a, b)


def _together(*values: Tensor) -> list[Tensor]:
    """Values on one device. Constants of the graph stay on the processor."""
    devices = {value.device for value in values if value.dim()}
    if len(devices) < 2:
        return list(values)
    device = next(device for device in devices if device.type != "cpu")
    return [value.to(device) for value in values]


def _identity(node: Node, x: Tensor) -> Tensor:
    return x


def _dropout(node: Node, x: Tensor, *options: Tensor | None) -> tuple[Tensor, Tensor]:
    """Only reached where the mask is used. It then is the mask of evaluation mode, in which nothing is dropped."""
    return x, torch.ones_like(x, dtype=torch.bool)


def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(node.precision.dtype_of(node.int("to", 1)))


def _cast_like(node: Node, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least, most = node.attributes.get("min"), node.attributes.get("max")  # before opset 11
    if least is not None or most is not None:
        return torch.clamp(x, least, most)
    if low is None and high is None:
        return x
    return torch.clamp(x, low, high)


def _leaky_relu(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.float("alpha", 0.01))


def _elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.float("alpha", 1.0))


def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.float("alpha", 1.0))


def _selu(node: Node, x: Tensor) -> Tensor:
    alpha, gamma = node.float("alpha", 1.67326324), node.float("gamma", 1.05070102)
    if abs(alpha - 1.67326324) < 1e-6 and abs(gamma - 1.05070102) < 1e-6:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def _thresholded_relu(node: Node, x: Tensor) -> Tensor:
    return torch.where(x > node.float("alpha", 1.0), x, torch.zeros_like(x))


def _shrink(node: Node, x: Tensor) -> Tensor:
    bias, limit = node.float("bias", 0.0), node.float("lambd", 0.5)
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    alpha, beta = node.float("alpha", 0.2), node.float("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)  # with 1/6 in full precision
    return torch.clamp(alpha * x + beta, 0, 1)


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.text("approximate", "none"))


def _swish(node: Node, x: Tensor) -> Tensor:
    alpha = node.float("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def _is_inf(node: Node, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if node.int("detect_positive", 1):
        found = found | (x == torch.inf)
    if node.int("detect_negative", 1):
        found = found | (x == -torch.inf)
    return found


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    a, b = _together(a, b)
    return torch.fmod(a, b) if node.int("fmod", 0) else torch.remainder(a, b)


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype) if not a.is_floating_point() else torch.pow(a, b)


def _bit_shift(node: Node, a: Tensor, b: Tensor) -> Tensor:
    if node.text("direction", "LEFT") == "LEFT":
        return torch.bitwise_left_shift(a, b)
    return torch.bitwise_right_shift(a, b)


def _prelu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, slope * x)


def _where(node: Node, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = _together(condition, a, b)
    return torch.where(condition, a, b)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    def fold(node: Node, *values: Tensor) -> Tensor:
        result, *others = _together(*values)
        for other in others:
            result = function(result, other)
        return result

    return fold


def _mean(node: Node, *values: Tensor) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


POINTWISE: dict[str, Op] = {
    "Abs": _plain(torch.abs),
    "Acos": _plain(torch.acos),
    "Acosh": _plain(torch.acosh),
    "Asin": _plain(torch.asin),
    "Asinh": _plain(torch.asinh),
    "Atan": _plain(torch.atan),
    "Atanh": _plain(torch.atanh),
    "BitwiseNot": _plain(torch.bitwise_not),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Ceil": _plain(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "Cosh": _plain(torch.cosh),
    "Dropout": _dropout,
    "Elu": _elu,
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": _identity,
    "IsInf": _is_inf,
    "IsNaN": _plain(torch.isnan),
    "LeakyRelu": _leaky_relu,
    "Log": _plain(torch.log),
    "Mish": _plain(F.mish),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Reciprocal": _plain(torch.reciprocal),
    "Relu": _plain(F.relu),
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Sinh": _plain(torch.sinh),
    "Softplus": _plain(F.softplus),
    "Softsign": _plain(F.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Swish": _swish,
    "Tan": _plain(torch.tan),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
}
"""Ops whose output has the shape of the first input. Other inputs are single numbers."""

BROADCAST: dict[str, Op] = {
    "Add": _folded(torch.add),
    "And": _folded(torch.logical_and),
    "BitShift": _bit_shift,
    "BitwiseAnd": _folded(torch.bitwise_and),
    "BitwiseOr": _folded(torch.bitwise_or),
    "BitwiseXor": _folded(torch.bitwise_xor),
    "Div": _folded(_divide),
    "Equal": _folded(torch.eq),
    "Greater": _folded(torch.gt),
    "GreaterOrEqual": _folded(torch.ge),
    "Less": _folded(torch.lt),
    "LessOrEqual": _folded(torch.le),
    "Max": _folded(torch.maximum),
    "Mean": _mean,
    "Min": _folded(torch.minimum),
    "Mod": _mod,
    "Mul": _folded(torch.mul),
    "Or": _folded(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _folded(_power),
    "Sub": _folded(torch.sub),
    "Sum": _folded(torch.add),
    "Where": _where,
    "Xor": _folded(torch.logical_xor),
}
"""Ops that broadcast their inputs against each other, aligned at the last axis."""
