"""Attention: torch's exporter takes scaled dot-product attention with four axes only; networks with windows call it with five."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

__all__ = ["attention_of_four_axes"]


@contextlib.contextmanager
def attention_of_four_axes() -> Iterator[None]:
    """While a network is exported, call `scaled_dot_product_attention` with inputs of four axes, (N, heads, tokens, channels).

    Leading axes are joined, and separated again afterwards, which changes no value.
    """
    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if query.dim() == 4 or query.dim() < 3 or not query.dim() == key.dim() == value.dim():
            return original(query, key, value, attn_mask, *args, **kwargs)
        lead = query.shape[:-3]
        if attn_mask is not None and attn_mask.dim() > 2:
            mask = attn_mask.expand(*query.shape[:-2], *attn_mask.shape[-2:])
            attn_mask = _joined(mask)
        found = original(_joined(query), _joined(key), _joined(value), attn_mask, *args, **kwargs)
        return found.reshape(*lead, *found.shape[-3:]) if query.dim() > 3 else found.squeeze(0)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def _joined(tensor: Tensor) -> Tensor:
    """(a, b, heads, tokens, channels) -> (a * b, heads, tokens, channels); three axes get a leading one."""
    return tensor.reshape(math.prod(tensor.shape[:-3]), *tensor.shape[-3:]) if tensor.dim() > 3 else tensor.unsqueeze(0)
