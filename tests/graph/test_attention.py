"""Attention with other than four axes, which is joined for the exporter: it answers like torch's own."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.graph.attention import attention_of_four_axes


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 2, 3)], ids=["heads", "images", "windows", "windows of windows"])
@pytest.mark.parametrize("mask", [None, (5, 7), (4, 5, 7), (1, 5, 7)], ids=["none", "tokens", "heads", "one for all heads"])
def test_joined_attention_answers_like_torch(lead: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    """4 heads of 8 channels, 5 queries and 7 keys"""
    query, key, value = random(*lead, 4, 5, 8), random(*lead, 4, 7, 8), random(*lead, 4, 7, 6)
    bias = None if mask is None else random(*mask)
    expected = F.scaled_dot_product_attention(query, key, value, bias)
    with attention_of_four_axes():
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

    torch.testing.assert_close(found, expected)


def test_attention_is_torchs_own_again_after_an_export_that_failed() -> None:
    own = F.scaled_dot_product_attention
    with pytest.raises(ValueError, match="broken"), attention_of_four_axes():
        raise ValueError("broken")

    assert F.scaled_dot_product_attention is own
