"""Contractions: products of matrices and convolutions whose weight is computed in the graph, and attention."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.graph.to_torch.node import Node
from pipeline.graph.to_torch.ops.elementwise import Op

__all__ = ["CONTRACTION", "convolution_padding", "same_padding", "transposed_padding"]


def _matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.int("transA", 0) else a
    b = b.T if node.int("transB", 0) else b
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    product = a @ b if alpha == 1 else alpha * (a @ b)
    if c is None:
        return product
    return product + (c if beta == 1 else beta * c)


def _einsum(node: Node, *values: Tensor) -> Tensor:
    return torch.einsum(node.text("equation", "").replace(" ", ""), *values)


def same_padding(
    sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int], *, upper: bool
) -> list[tuple[int, int]]:
    """(before, after) per spatial axis, so that the output has size / stride values, rounded up."""
    result = []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        result.append((small, large) if upper else (large, small))
    return result


def convolution_padding(node: Node, sizes: list[int], kernel: list[int]) -> list[tuple[int, int]]:
    """(before, after) per spatial axis of a convolution or a pooling."""
    count = len(kernel)
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        ones = [1] * count
        strides, dilations = node.ints("strides") or ones, node.ints("dilations") or ones
        return same_padding(sizes, kernel, strides, dilations, upper=auto == "SAME_UPPER")
    pads = (node.ints("pads") if auto == "NOTSET" else None) or [0] * (2 * count)
    return list(zip(pads[:count], pads[count:], strict=True))


def transposed_padding(node: Node, sizes: list[int], kernel: list[int]) -> list[tuple[int, int]]:
    """(before, after) per spatial axis: what a transposed convolution cuts from its output, `output_padding` included."""
    count = len(kernel)
    ones = [1] * count
    strides, dilations = node.ints("strides") or ones, node.ints("dilations") or ones
    extra = node.ints("output_padding") or [0] * count
    auto, wanted = node.text("auto_pad", "NOTSET"), node.ints("output_shape")
    if auto == "NOTSET" and wanted is None:
        pads = node.ints("pads") or [0] * (2 * count)
        return list(zip(pads[:count], pads[count:], strict=True))
    if auto == "VALID":
        return [(0, 0)] * count
    result = []
    for axis, stride in enumerate(strides):
        full = stride * (sizes[axis] - 1) + extra[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        total = full - (wanted[-count:][axis] if wanted is not None else sizes[axis] * stride)
        half = total // 2
        result.append((half, total - half) if auto == "SAME_UPPER" else (total - half, half))
    return result


_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def padded(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` with its last axes padded. Negative widths cut."""
    if not any(width for pair in pads for width in pair):
        return x
    return F.pad(x, [width for pair in reversed(pads) for width in pair], value=value)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = weight.dim() - 2
    ones = [1] * count
    x = padded(x, convolution_padding(node, list(x.shape[2:]), list(weight.shape[2:])))
    strides, dilations = node.ints("strides") or ones, node.ints("dilations") or ones
    return _CONVS[count](x, weight, bias, strides, 0, dilations, node.int("group", 1))


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    count = weight.dim() - 2
    ones = [1] * count
    cuts = transposed_padding(node, list(x.shape[2:]), list(weight.shape[2:]))
    strides, dilations = node.ints("strides") or ones, node.ints("dilations") or ones
    extra = node.ints("output_padding") or [0] * count
    full = _TRANSPOSED[count](x, weight, bias, strides, 0, extra, node.int("group", 1), dilations)
    return padded(full, [(-before, -after) for before, after in cuts])


def _heads(x: Tensor, count: int) -> Tensor:
    """(batch, positions, heads x width) -> (batch, heads, positions, width)"""
    return x.unflatten(2, (count, -1)).transpose(1, 2) if x.dim() == 3 else x


def _attention(node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    flat = q.dim() == 3
    queries = _heads(q, node.int("q_num_heads", 1))
    keys, values = (_heads(x, node.int("kv_num_heads", 1)) for x in (k, v))
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (keys, values))
    scale = node.float("scale", 1 / math.sqrt(queries.shape[-1]))
    bias = mask
    if node.int("is_causal", 0):
        rows, columns = queries.shape[2], keys.shape[2]
        seen = torch.ones(rows, columns, dtype=torch.bool, device=q.device).tril()
        if bias is None or bias.dtype == torch.bool:
            bias = seen if bias is None else seen & bias
        else:
            bias = bias.masked_fill(~seen, -torch.inf)
    softcap = node.float("softcap", 0.0)
    if softcap == 0:
        found = F.scaled_dot_product_attention(queries, keys, values, bias, scale=scale)
    else:
        scores = softcap * torch.tanh(queries @ keys.transpose(-1, -2) * scale / softcap)
        if bias is not None:
            scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
        found = scores.softmax(-1) @ values
    return found.transpose(1, 2).flatten(2) if flat else found


CONTRACTION: dict[str, Op] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
