"""Shape ops: functions that reshape, reorder, join, cut and repeat tensors, or that compute with shapes."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node, as_ints, normal_axis
from pipeline.graph.to_torch.ops.elementwise import Op

__all__ = ["SHAPE", "reshape_target"]


def reshape_target(shape: list[int], target: list[int], allow_zero: bool) -> list[int]:
    """The shape that Reshape gives a tensor of `shape`: 0 copies an axis (unless `allow_zero`), and -1 stands for the rest."""
    result = [shape[axis] if size == 0 and not allow_zero else size for axis, size in enumerate(target)]
    if -1 in result:
        known = -math.prod(result)
        result[result.index(-1)] = math.prod(shape) // known if known else 0
    return result


def _reshape(node: Node, x: Tensor, target: Tensor) -> Tensor:
    return x.reshape(reshape_target(list(x.shape), as_ints(target), bool(node.int("allowzero", 0))))


def _flatten(node: Node, x: Tensor) -> Tensor:
    axis = normal_axis(node.int("axis", 1), x.dim())
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def axes_of(node: Node, axes: Tensor | None) -> list[int] | None:
    """The axes of a node, which are an input in newer opsets and an attribute in older ones."""
    return node.ints("axes") if axes is None else as_ints(axes)


def _squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = axes_of(node, axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def _unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = axes_of(node, axes) or []
    rank = x.dim() + len(found)
    for axis in sorted(normal_axis(axis, rank) for axis in found):
        x = x.unsqueeze(axis)
    return x


def _transpose(node: Node, x: Tensor) -> Tensor:
    return x.permute(node.ints("perm") or list(reversed(range(x.dim()))))


def _concat(node: Node, *values: Tensor) -> Tensor:
    device = next((value.device for value in values if value.device.type != "cpu"), values[0].device)
    return torch.cat([value.to(device) for value in values], node.int("axis", 0))


def split_sizes(node: Node, size: int, sizes: Tensor | None) -> list[int]:
    """The lengths of the pieces of an axis of length `size`."""
    found = node.ints("split") if sizes is None else as_ints(sizes)
    if found is not None:
        return found
    pieces = node.int("num_outputs", len(node.outputs))
    step = -(-size // pieces)
    return [max(0, min(step, size - step * piece)) for piece in range(pieces)]


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.int("axis", 0)
    return torch.split(x, split_sizes(node, x.shape[axis], sizes), axis)


def slice_ranges(node: Node, rank: int, *bounds: Tensor | None) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) of every axis that a Slice cuts. `bounds` are its inputs after the first."""
    given = (*bounds, None, None, None, None)[:4]
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (
        node.ints(name) if value is None else as_ints(value) for name, value in zip(names, given, strict=True)
    )
    starts, ends = starts or [], ends or []
    axes = list(range(len(starts))) if axes is None else [normal_axis(axis, rank) for axis in axes]
    return list(zip(axes, starts, ends, steps or [1] * len(starts), strict=True))


def _slice(node: Node, x: Tensor, *bounds: Tensor | None) -> Tensor:
    for axis, start, end, step in slice_ranges(node, x.dim(), *bounds):
        size = x.shape[axis]
        if step > 0:
            first = min(max(start + size if start < 0 else start, 0), size)
            last = min(max(end + size if end < 0 else end, 0), size)
            if (first, last, step) != (0, size, 1):
                index = [slice(None)] * axis + [slice(first, max(first, last), step)]
                x = x[tuple(index)]
        else:
            first = min(max(start + size if start < 0 else start, -1), size - 1)
            last = min(max(end + size if end < 0 else end, -1), size - 1)
            x = x.index_select(axis, torch.arange(first, last, step, device=x.device))
    return x


def _positive(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


def _gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = normal_axis(node.int("axis", 0), x.dim())
    if indices.dim() == 0:
        return x.select(axis, int(indices))
    chosen = _positive(indices.reshape(-1).long(), x.shape[axis]).to(x.device)
    found = x.index_select(axis, chosen)
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = normal_axis(node.int("axis", 0), x.dim())
    return x.gather(axis, _positive(indices.long(), x.shape[axis]).to(x.device))


def _gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    lead = node.int("batch_dims", 0)
    indices = indices.to(x.device)
    if lead:
        outer = x.shape[:lead]
        data, index = x.reshape(-1, *x.shape[lead:]), indices.reshape(-1, *indices.shape[lead:])
        rows = [_gather_nd(Node(**{**vars(node), "attributes": {}}), a, b) for a, b in zip(data, index, strict=True)]
        found = torch.stack(rows)
        return found.reshape(*outer, *found.shape[1:])
    return x[tuple(_positive(part, x.shape[axis]) for axis, part in enumerate(indices.unbind(-1)))]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth = indices.shape[-1]
    dtype = torch.promote_types(x.dtype, updates.dtype)
    inner = x.shape[depth:]
    flat = x.to(dtype).reshape(-1, *inner)
    position = torch.zeros(indices.shape[:-1], dtype=torch.long, device=x.device)
    for axis in range(depth):
        position = position * x.shape[axis] + _positive(indices[..., axis].long().to(x.device), x.shape[axis])
    position, values = position.reshape(-1), updates.to(flat).reshape(-1, *inner)
    reduction = node.text("reduction", "none")
    if reduction == "none":
        return flat.index_copy(0, position, values).reshape(x.shape)
    if reduction == "add":
        return flat.index_add(0, position, values).reshape(x.shape)
    everywhere = position.reshape([-1] + [1] * len(inner)).expand_as(values)
    return flat.scatter_reduce(0, everywhere, values, _REDUCTIONS[reduction]).reshape(x.shape)


def _scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = normal_axis(node.int("axis", 0), x.dim())
    dtype = torch.promote_types(x.dtype, updates.dtype)
    index = _positive(indices.long(), x.shape[axis]).to(x.device)
    reduction = node.text("reduction", "none")
    if reduction == "none":
        return x.to(dtype).scatter(axis, index, updates.to(x.device, dtype))
    return x.to(dtype).scatter_reduce(axis, index, updates.to(x.device, dtype), _REDUCTIONS[reduction])


def _expand(node: Node, x: Tensor, target: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, as_ints(target)))


def _tile(node: Node, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(as_ints(repeats))


def pad_widths(node: Node, rank: int, pads: Tensor | None, axes: Tensor | None) -> list[tuple[int, int]]:
    """(before, after) of every axis of a Pad."""
    found = (node.ints("pads") or []) if pads is None else as_ints(pads)
    where = list(range(rank)) if axes is None else [normal_axis(axis, rank) for axis in as_ints(axes)]
    widths = [(0, 0)] * rank
    for place, axis in enumerate(where):
        widths[axis] = (found[place], found[place + len(where)])
    return widths


def _pad(node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    widths = pad_widths(node, x.dim(), pads, axes)
    mode = node.text("mode", "constant")
    if mode == "constant":
        fill = node.float("value", 0.0) if value is None else value.item()
        return F.pad(x, [width for pair in reversed(widths) for width in pair], value=fill)
    for axis, (before, after) in enumerate(widths):
        if before or after:
            x = x.index_select(axis, _padded_index(x.shape[axis], before, after, mode).to(x.device))
    return x


def _padded_index(size: int, before: int, after: int, mode: str) -> Tensor:
    index = torch.arange(-before, size + after)
    if mode == "edge":
        return index.clamp(0, size - 1)
    if mode == "wrap":
        return index.remainder(size)
    period = max(2 * (size - 1), 1)
    index = index.remainder(period)
    return torch.minimum(index, period - index) if size > 1 else torch.zeros_like(index)


def _depth_to_space(node: Node, x: Tensor) -> Tensor:
    block = node.int("blocksize", 1)
    batch, channels, height, width = x.shape
    if node.text("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    split = x.reshape(batch, block, block, channels // block**2, height, width)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // block**2, height * block, width * block)


def _space_to_depth(node: Node, x: Tensor) -> Tensor:
    block = node.int("blocksize", 1)
    batch, channels, height, width = x.shape
    split = x.reshape(batch, channels, height // block, block, width // block, block)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * block**2, height // block, width // block)


def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if node.int("upper", 1) else torch.tril(x, diagonal)


def _shape(node: Node, x: Tensor) -> Tensor:
    dims = list(x.shape)
    return torch.tensor(dims[node.int("start", 0) : node.int("end", len(dims))], dtype=torch.long)


def _size(node: Node, x: Tensor) -> Tensor:
    return torch.tensor(x.numel())


def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.attributes.get("value")
    number = node.precision.followed(torch.zeros(1) if value is None else value)
    return number.reshape(()).expand(as_ints(shape)).clone()


def _range(node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


def _non_zero(node: Node, x: Tensor) -> Tensor:
    return x.nonzero().T


def _one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(depth)
    axis = normal_axis(node.int("axis", -1), indices.dim() + 1)
    places = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.dim() - axis))
    hot = _positive(indices.long(), count).unsqueeze(axis) == places
    return torch.where(hot, values[1], values[0])


def _eye_like(node: Node, x: Tensor) -> Tensor:
    kind = node.attributes.get("dtype")
    dtype = x.dtype if kind is None else node.precision.dtype_of(int(kind))
    rows, columns = x.shape
    shifted = torch.arange(rows, device=x.device)[:, None] + node.int("k", 0)
    return (shifted == torch.arange(columns, device=x.device)).to(dtype)


SHAPE: dict[str, Op] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
