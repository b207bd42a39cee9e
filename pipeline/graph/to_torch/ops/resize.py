"""Resize: interpolation in every mode of ONNX, through torch's interpolate where it says the same, otherwise axis by axis."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node, as_ints, normal_axis
from pipeline.graph.to_torch.ops.elementwise import Op

__all__ = ["RESIZE", "resize_axes"]


def resize_axes(node: Node, rank: int) -> list[int]:
    """The axes that the scales or sizes of a Resize belong to."""
    found = node.ints("axes")
    return list(range(rank)) if found is None else [normal_axis(axis, rank) for axis in found]


def _upsample(node: Node, x: Tensor, scales: Tensor | None = None) -> Tensor:
    found = node.attributes["scales"] if scales is None else scales.tolist()
    plan = {axis: (math.floor(size * scale), float(scale)) for axis, (size, scale) in enumerate(zip(x.shape, found, strict=True))}
    mode = node.text("mode", "nearest")
    return _resized(node, x, plan, "asymmetric", "linear" if mode == "bilinear" else mode)


def _resize(node: Node, x: Tensor, *inputs: Tensor | None) -> Tensor:
    _, scales, sizes = (*((None, *inputs) if node.opset < 11 else inputs), None, None, None)[:3]
    axes = resize_axes(node, x.dim())
    if sizes is not None and sizes.numel():
        goal = dict(zip(axes, as_ints(sizes), strict=True))
        plan = _sizes_plan(x, goal, node.text("keep_aspect_ratio_policy", "stretch"))
    else:
        factors = [] if scales is None else [float(scale) for scale in scales.tolist()]
        plan = {axis: (math.floor(x.shape[axis] * scale), scale) for axis, scale in zip(axes, factors, strict=True)}
    default = "asymmetric" if node.opset < 11 else "half_pixel"
    return _resized(node, x, plan, node.text("coordinate_transformation_mode", default), node.text("mode", "nearest"))


def _sizes_plan(x: Tensor, goal: dict[int, int], policy: str) -> dict[int, tuple[int, float]]:
    scales = {axis: size / x.shape[axis] for axis, size in goal.items()}
    if policy == "stretch":
        return {axis: (size, scales[axis]) for axis, size in goal.items()}
    scale = min(scales.values()) if policy == "not_larger" else max(scales.values())
    return {axis: (math.floor(scale * x.shape[axis] + 0.5), scale) for axis in goal}


def _resized(node: Node, x: Tensor, plan: dict[int, tuple[int, float]], where: str, mode: str) -> Tensor:
    plan = {axis: (size, scale) for axis, (size, scale) in plan.items() if size != x.shape[axis] or scale != 1}
    fast = _by_torch(node, x, plan, where, mode)
    if fast is not None:
        return fast
    for axis, (size, scale) in plan.items():
        x = _along(node, x, axis, (size, scale), (where, mode))
    return x


_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def _by_torch(node: Node, x: Tensor, plan: dict[int, tuple[int, float]], where: str, mode: str) -> Tensor | None:
    spatial = list(range(2, x.dim()))
    if x.dim() not in (3, 4, 5) or not set(plan) <= set(spatial) or not plan or node.int("antialias", 0):
        return None
    sizes = [plan.get(axis, (x.shape[axis], 1.0))[0] for axis in spatial]
    scales = [plan.get(axis, (x.shape[axis], 1.0))[1] for axis in spatial]
    if mode == "nearest":
        floors = node.text("nearest_mode", "round_prefer_floor") == "floor" or (node.opset < 11 or node.op == "Upsample")
        whole = all(scale == round(scale) for scale in scales)
        return F.interpolate(x, scale_factor=scales, mode="nearest") if where == "asymmetric" and floors and whole else None
    if node.int("exclude_outside", 0) or (mode == "cubic" and (x.dim() != 4 or node.float("cubic_coeff_a", -0.75) != -0.75)):
        return None
    name = "bicubic" if mode == "cubic" else _LINEAR[x.dim()]
    if where == "align_corners":
        return F.interpolate(x, sizes, mode=name, align_corners=True)
    if where == "half_pixel" or (where == "pytorch_half_pixel" and min(sizes) > 1):
        if all(scale == size / x.shape[axis] for axis, size, scale in zip(spatial, sizes, scales, strict=True)):
            return F.interpolate(x, sizes, mode=name, align_corners=False)
        if all(math.floor(x.shape[axis] * scale) == size for axis, size, scale in zip(spatial, sizes, scales, strict=True)):
            return F.interpolate(x, scale_factor=scales, mode=name, align_corners=False, recompute_scale_factor=False)
    return None


def _along(node: Node, x: Tensor, axis: int, target: tuple[int, float], how: tuple[str, str]) -> Tensor:
    """Resize one axis: every output is a sum of a few inputs with fixed weights."""
    where, mode = how
    length = x.shape[axis]
    centre = _coordinates(length, target, where)
    if mode == "nearest":
        older = node.opset < 11 or node.op == "Upsample"
        rounding = node.text("nearest_mode", "floor" if older else "round_prefer_floor")
        return x.index_select(axis, _nearest(centre, rounding).clamp(0, length - 1).to(x.device))
    taps, weights = _taps(node, centre, target[1], mode)
    inside = (taps >= 0) & (taps < length)
    if node.int("exclude_outside", 0):
        weights = torch.where(inside, weights, 0)
        weights = weights / weights.sum(0)
    result = torch.zeros((), dtype=x.dtype, device=x.device)
    for tap, weight in zip(taps.clamp(0, length - 1), weights, strict=True):
        factor = weight.to(x).reshape([-1] + [1] * (x.dim() - axis - 1))
        result = result + x.index_select(axis, tap.to(x.device)) * factor
    return result


def _coordinates(length: int, target: tuple[int, float], where: str) -> Tensor:
    """Where each output lies on the input axis, in float64."""
    size, scale = target
    out = torch.arange(size, dtype=torch.float64)
    if where == "align_corners":
        return out * ((length - 1) / (size - 1)) if size > 1 else out * 0
    if where == "asymmetric":
        return out / scale
    if where == "pytorch_half_pixel" and size == 1:
        return out * 0
    shift = 0.0
    if where == "half_pixel_symmetric":
        shift = length / 2 * (1 - size / (scale * length))
    return shift + (out + 0.5) / scale - 0.5


def _nearest(centre: Tensor, rounding: str) -> Tensor:
    if rounding == "floor":
        return centre.floor().long()
    if rounding == "ceil":
        return centre.ceil().long()
    if rounding == "round_prefer_ceil":
        return (centre + 0.5).floor().long()
    return (centre - 0.5).ceil().long()


def _taps(node: Node, centre: Tensor, scale: float, mode: str) -> tuple[Tensor, Tensor]:
    """(input positions, weights), both (taps, outputs)."""
    wide = min(scale, 1.0) if node.int("antialias", 0) else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / wide)
    offsets = torch.arange(1 - reach, reach + 1)[:, None]
    taps = centre.floor().long() + offsets
    distance = (taps - centre).abs() * wide
    if mode == "linear":
        weights = (1 - distance).clamp(min=0)
    else:
        a = node.float("cubic_coeff_a", -0.75)
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
        weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
    return taps, weights / weights.sum(0)


RESIZE: dict[str, Op] = {"Resize": _resize, "Upsample": _upsample}
