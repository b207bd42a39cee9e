"""Patterns over several axes: which channels can be removed where labels of different kinds meet."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.graph.analyse import analyse
from pipeline.graph.labels.fields import resolve, varying
from pipeline.graph.labels.unions import FIXED, Unions


class Attention(nn.Module):
    """x -> conv(24) as 8 tokens -> qkv with 3 heads of 8 channels -> attention -> projection -> mean -> linear"""

    def __init__(self, *, rotary: bool = False, windows: bool = False) -> None:
        super().__init__()
        self.stem, self.qkv, self.out, self.head = nn.Conv2d(3, 24, 2, 2), nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 5)
        self.windows = windows
        angle = torch.arange(4)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03]).repeat(2)
        self.register_buffer("table", torch.stack([angle.sin(), angle.cos()]) if rotary else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(x).reshape(len(x), -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
        if self.table is not None:
            query, key = (torch.cat([-y[..., 4:], y[..., :4]], -1) * self.table[0] + y * self.table[1] for y in (query, key))
        if self.windows:  # (N, heads, tokens, channels) -> (N, windows, heads, tokens, channels)
            query, key, value = (y.unflatten(2, (2, -1)).transpose(1, 2) for y in (query, key, value))
        y = F.scaled_dot_product_attention(query, key, value)
        if self.windows:
            y = y.transpose(1, 2).flatten(2, 3)
        return self.head((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


class Focal(nn.Module):
    """x -> conv(8 + 2) -> split: 8 channels and 2 gates; each gate alone is multiplied with all 8 channels -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.head = nn.Conv2d(3, 10, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, gates = self.both(x).split((8, 2), 1)
        return self.head((y * gates[:, :1] + y.relu() * gates[:, 1:]).mean((2, 3)))


def found(module: nn.Module) -> dict[str, int]:
    torch.manual_seed(0)
    return {group.name: group.channels for group in analyse(module.eval(), torch.randn(1, 3, 4, 4)).space.groups}


@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"windows": True}], ids=["plain", "rotary", "windows"])
def test_heads_are_the_channels_of_attention(options: dict[str, bool]) -> None:
    """the table of a rotary embedding is the same for all heads; windows are a fifth axis"""
    groups = found(Attention(**options))

    assert groups["qkv"] == 3
    assert groups["stem"] == 24


def test_a_channel_that_is_used_alone_stays_and_the_others_can_leave() -> None:
    groups = found(Focal())

    assert groups == {"both": 8}


def test_a_kernel_of_one_lets_channels_on_the_other_axes_pass() -> None:
    """two linear layers stacked as (N, 2, channels), and Conv1d(2, 1, 1) over them: the channels are positions of that convolution"""

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.join, self.head = nn.Linear(48, 6), nn.Linear(48, 6), nn.Conv1d(2, 1, 1), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            return self.head(self.join(torch.stack([self.a(x), self.b(x)], 1)).squeeze(1))

    assert found(Stacked())["a"] == 6


def test_a_pattern_that_meets_positions_that_stay_still_differs_along_one_axis_only() -> None:
    """two rows of two channels, of which one position stays"""
    unions = Unions()
    new = unions.new(3)
    field = resolve(np.array([[FIXED, new[0]], [new[1], new[2]]]), unions)

    assert len(varying(field)) <= 1
