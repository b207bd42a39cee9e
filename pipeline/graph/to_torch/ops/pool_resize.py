"""Pooling and sampling: functions that change the size of images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node
from pipeline.graph.to_torch.ops.contraction import convolution_padding, padded
from pipeline.graph.to_torch.ops.elementwise import Op

__all__ = ["GLOBAL", "POOL", "REGIONS"]

_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _symmetric(pads: list[tuple[int, int]], kernel: list[int]) -> bool:
    """Whether torch's own padding, at most half a kernel on both sides, can express it."""
    return all(before == after <= width // 2 for (before, after), width in zip(pads, kernel, strict=True))


def _max_pool(node: Node, x: Tensor) -> Tensor | tuple[Tensor, ...]:
    kernel = node.ints("kernel_shape") or []
    ones = [1] * len(kernel)
    strides, dilations, ceil = node.ints("strides") or ones, node.ints("dilations") or ones, bool(node.int("ceil_mode", 0))
    pads = convolution_padding(node, list(x.shape[2:]), kernel)
    inside = _symmetric(pads, kernel)
    margin = [before for before, _ in pads] if inside else [0] * len(kernel)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    wide = x if inside else padded(x, pads, lowest)
    pool = _MAX[len(kernel)]
    if len(node.outputs) < 2 or not node.outputs[1]:
        return pool(wide, kernel, strides, margin, dilations, ceil)
    found, index = pool(wide, kernel, strides, margin, dilations, ceil, return_indices=True)
    return found, _global_index(index, x, wide, pads if not inside else [(0, 0)] * len(kernel))


def _global_index(index: Tensor, x: Tensor, wide: Tensor, pads: list[tuple[int, int]]) -> Tensor:
    """Positions in one padded plane -> positions in the whole tensor, as ONNX counts them."""
    position, scale = torch.zeros_like(index), 1
    for axis in reversed(range(2, x.dim())):
        position = position + (index % wide.shape[axis] - pads[axis - 2][0]) * scale
        index, scale = index // wide.shape[axis], scale * x.shape[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device) * scale
    return position + planes.reshape(x.shape[0], x.shape[1], *[1] * (x.dim() - 2))


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.ints("kernel_shape") or []
    ones = [1] * len(kernel)
    strides, dilations, ceil = node.ints("strides") or ones, node.ints("dilations") or ones, bool(node.int("ceil_mode", 0))
    pads = convolution_padding(node, list(x.shape[2:]), kernel)
    count_pads = bool(node.int("count_include_pad", 0))
    if all(width == 1 for width in dilations) and _symmetric(pads, kernel):
        return _AVERAGE[len(kernel)](x, kernel, strides, [before for before, _ in pads], ceil, count_pads)
    start = [size + before for size, (before, _) in zip(x.shape[2:], pads, strict=True)]
    total = _window_sum(padded(x, pads), start, (kernel, strides, dilations), ceil=ceil)
    one = torch.ones_like(x[:1, :1])
    inside = padded(torch.ones_like(padded(one, pads)) if count_pads else one, [(0, 0)] * len(kernel) if count_pads else pads)
    return total / _window_sum(inside, start, (kernel, strides, dilations), ceil=ceil)


def _window_sum(x: Tensor, start: list[int], window: tuple[list[int], list[int], list[int]], *, ceil: bool) -> Tensor:
    """The sum of every window (kernel, strides, dilations). With `ceil`, windows reach over the end but begin before `start`."""
    kernel, strides, dilations = window
    extra = []
    for size, limit, width, stride, dilation in zip(x.shape[2:], start, kernel, strides, dilations, strict=True):
        reach = dilation * (width - 1) + 1
        steps = -(-(size - reach) // stride) if ceil else (size - reach) // stride
        steps -= int(steps * stride >= limit)
        extra.append((0, max(0, steps * stride + reach - size)))
    x = padded(x, extra)
    flat = x.reshape(-1, 1, *x.shape[2:])
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    found = conv(flat, x.new_ones(1, 1, *kernel), None, strides, 0, dilations)
    return found.reshape(*x.shape[:2], *found.shape[2:])


def _lp_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.ints("kernel_shape") or []
    ones = [1] * len(kernel)
    p = node.int("p", 2)
    pads = convolution_padding(node, list(x.shape[2:]), kernel)
    start = [size + before for size, (before, _) in zip(x.shape[2:], pads, strict=True)]
    window = (kernel, node.ints("strides") or ones, node.ints("dilations") or ones)
    return _window_sum(padded(x.abs().pow(p), pads), start, window, ceil=bool(node.int("ceil_mode", 0))).pow(1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _global_average(node: Node, x: Tensor) -> Tensor:
    return x.mean(_spatial(x), keepdim=True)


def _global_max(node: Node, x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


def _global_lp(node: Node, x: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x, node.int("p", 2), _spatial(x), keepdim=True)
    return length


def _local_response(node: Node, x: Tensor) -> Tensor:
    size = node.int("size", 1)
    around = ((size - 1) // 2, size // 2)  # torch puts the longer half in front
    squares = padded(x.square().movedim(1, -1), [around]).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / (node.float("bias", 1.0) + node.float("alpha", 1e-4) / size * squares) ** node.float("beta", 0.75)


_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _grid_sample(node: Node, x: Tensor, grid: Tensor) -> Tensor:
    mode = node.text("mode", "linear")
    border = node.text("padding_mode", "zeros")
    return F.grid_sample(x, grid.to(x.dtype), _GRID_MODES.get(mode, mode), border, bool(node.int("align_corners", 0)))


def _roi_align(node: Node, x: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
    from torchvision.ops import roi_align  # noqa: PLC0415 - it takes a second to import, and few networks need it

    size = node.int("output_height", 1), node.int("output_width", 1)
    kind = node.text("coordinate_transformation_mode", "output_half_pixel" if node.opset < 16 else "half_pixel")
    rows = torch.cat([images.to(x.dtype).unsqueeze(1), boxes.to(x.dtype)], 1)
    found: Tensor = roi_align(
        x, rows, size, node.float("spatial_scale", 1.0), node.int("sampling_ratio", 0) or -1, kind == "half_pixel"
    )
    return found


def _columns_to_image(node: Node, x: Tensor, size: Tensor, block: Tensor) -> Tensor:
    ones = [1] * len(size)
    pads = node.ints("pads") or [0] * 2 * len(ones)
    before, after = pads[: len(ones)], pads[len(ones) :]
    whole = [int(number) + first + last for number, first, last in zip(size.tolist(), before, after, strict=True)]
    steps = tuple(node.ints("strides") or ones)
    image = F.fold(x, tuple(whole), tuple(block.tolist()), tuple(node.ints("dilations") or ones), 0, steps)
    for axis, (first, number) in enumerate(zip(before, size.tolist(), strict=True), 2):
        image = image.narrow(axis, first, int(number))
    return image


POOL: dict[str, Op] = {
    "AveragePool": _average_pool,
    "Col2Im": _columns_to_image,
    "GridSample": _grid_sample,
    "LRN": _local_response,
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
"""Ops on (batch, channels, ...) that keep these two axes."""

GLOBAL: dict[str, Op] = {"GlobalAveragePool": _global_average, "GlobalLpPool": _global_lp, "GlobalMaxPool": _global_max}
"""Ops that reduce all spatial axes to length 1."""

REGIONS: dict[str, Op] = {"RoiAlign": _roi_align}
"""Ops that read regions of images. A region says which image it is of, so images cannot be separated."""
