"""Unusual spellings of usual layers: what can be pruned, or a reason that names the place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pipeline.core.plan import PruneSpace
from pipeline.graph.analyse import analyse
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.settings import PruningSettings


class Net(nn.Module):
    """x -> a: conv(8) -> `run` -> mean over the picture -> head: linear(5)"""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], width: int = 8, **layers: nn.Module) -> None:
        super().__init__()
        self.run, self.a = run, nn.Conv2d(3, 8, 3, padding=1)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.run(self, self.a(x)).mean((2, 3)))
        return answer


def space_of(net: Callable[[], nn.Module], grouped: Grouped = "evenly") -> PruneSpace:
    torch.manual_seed(0)
    return analyse(net().eval(), torch.randn(1, 3, 8, 8), settings=PruningSettings(grouped=grouped)).space


def excite(n: nn.Module, x: Tensor) -> Tensor:
    """squeeze-excite, with a product of the weights by einsum"""
    mean = x.mean((2, 3))
    gate = torch.einsum("nr,cr->nc", torch.einsum("nc,rc->nr", mean, n.down.weight).relu(), n.up.weight).sigmoid()
    return torch.einsum("nchw,nc->nchw", x, gate)


def pixel_shuffle(x: Tensor) -> Tensor:
    """(N, 4 C, H, W) -> (N, C, 2 H, 2 W), with view and permute"""
    n, channels, height, width = x.shape
    x = x.view(n, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, channels // 4, 2 * height, 2 * width)


def group_norm(x: Tensor, groups: int) -> Tensor:
    """with means over the channels and pixels of each group"""
    y = x.reshape(len(x), groups, -1, *x.shape[2:])
    mean = y.mean((2, 3, 4), keepdim=True)
    variance = (y - mean).square().mean((2, 3, 4), keepdim=True)
    return ((y - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """over the channels, which come first"""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return scale[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6) + shift[:, None, None]


def shuffled(x: Tensor, groups: int) -> Tensor:
    """'b (g c) h w -> b (c g) h w'"""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def gated(halves: tuple[Tensor, ...]) -> Tensor:
    one, other = halves
    return one * other.sigmoid()


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """with one head over all pixels; the picture has 8 x 8"""
    query, key, value = (each.flatten(2).mT[:, None] for each in (q, k, v))
    return F.scaled_dot_product_attention(query, key, value)[:, 0].mT.unflatten(2, (8, 8))


def similarity(q: Tensor, k: Tensor) -> Tensor:
    """products of all pixels, summed over the channels"""
    return torch.einsum("nchw,ncuv->nhwuv", q, k).flatten(1, 2).mean(1, keepdim=True).expand(-1, 8, -1, -1)


def assigned(x: Tensor, places: slice | list[int], values: Tensor | float) -> Tensor:
    """`x` with other values in some channels"""
    x = x.clone()
    x[:, places] = values
    return x


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.rand(width))


def linear(*sizes: int) -> nn.Linear:
    return nn.Linear(*sizes, bias=False)


Found = dict[str, tuple[int, int]]
"""Group -> (channels, outputs of the layer per channel)."""

NETS: dict[str, tuple[Callable[[], nn.Module], Found]] = {
    "squeeze-excite by einsum": (
        lambda: Net(excite, down=linear(8, 4), up=linear(4, 8)),
        {"a": (8, 1), "down": (4, 1)},
    ),
    "pixel shuffle by hand, then a mean": (lambda: Net(lambda n, x: pixel_shuffle(x), 2), {"a": (2, 4)}),
    "pixel shuffle by hand, then a convolution": (
        lambda: Net(lambda n, x: n.b(pixel_shuffle(x)), 6, b=nn.Conv2d(2, 6, 1)),
        {"a": (2, 4), "b": (6, 1)},
    ),
    "transposed convolution with groups": (
        lambda: Net(lambda n, x: n.b(x), 12, b=nn.ConvTranspose2d(8, 12, 2, 2, groups=4)),
        {"a": (2, 4), "b": (3, 1)},
    ),
    "depthwise transposed convolution": (
        lambda: Net(lambda n, x: n.b(x), 8, b=nn.ConvTranspose2d(8, 8, 2, 2, groups=8)),
        {"a": (8, 1)},
    ),
    "group norm by means": (lambda: Net(lambda n, x: group_norm(x, 2)), {"a": (4, 2)}),
    "channel shuffle by unflatten": (lambda: Net(lambda n, x: shuffled(x, 2)), {"a": (4, 2)}),
    "layer norm over the first axis": (lambda: Net(lambda n, x: layer_norm(x, n.s.weight, n.s.bias), s=Scale(8)), {"a": (8, 1)}),
    "gate by chunk": (lambda: Net(lambda n, x: gated(x.chunk(2, 1)), 4), {"a": (4, 2)}),
    "gate by split": (lambda: Net(lambda n, x: gated(x.split(4, 1)), 4), {"a": (4, 2)}),
    "gate by tensor_split": (lambda: Net(lambda n, x: gated(x.tensor_split(2, 1)), 4), {"a": (4, 2)}),
    "gate by glu": (lambda: Net(lambda n, x: F.glu(x, 1), 4), {"a": (4, 2)}),
    "product of stacked halves": (lambda: Net(lambda n, x: torch.stack(x.chunk(2, 1)).prod(0), 4), {"a": (4, 2)}),
    "weight norm": (
        lambda: Net(lambda n, x: n.b(x), 6, b=parametrizations.weight_norm(nn.Conv2d(8, 6, 1))),
        {"a": (8, 1), "b": (6, 1)},
    ),
    "weight norm of the last layer": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(8), nn.Flatten(), parametrizations.weight_norm(nn.Linear(8, 5))),
        {"0": (8, 1)},
    ),
    "spectral norm": (
        lambda: Net(lambda n, x: n.b(x), 6, b=parametrizations.spectral_norm(nn.Conv2d(8, 6, 1))),
        {"a": (8, 1), "b": (6, 1)},
    ),
    "L2 normalisation over the channels": (
        lambda: Net(lambda n, x: F.normalize(x, dim=1) * n.s.weight[:, None, None], s=Scale(8)),
        {"a": (8, 1)},
    ),
    "attention with one head": (
        lambda: Net(lambda n, x: attention(n.q(x), n.k(x), x), q=nn.Conv2d(8, 6, 1), k=nn.Conv2d(8, 6, 1)),
        {"a": (8, 1), "q": (6, 1)},
    ),
    "a gate for every other channel": (lambda: Net(lambda n, x: x[:, ::2] * x[:, 1::2].tanh(), 4), {"a": (4, 2)}),
    "a list as an index": (lambda: Net(lambda n, x: x[:, [0, 2, 1, 3, 7, 6, 5, 4]]), {"a": (8, 1)}),
    "a tensor as an index, with one channel twice": (
        lambda: Net(lambda n, x: x[:, torch.tensor([3, 3, 0, 1])], 4),
        {"a": (3, 1), "a#2": (5, 1)},
    ),
    "channels assigned by a list, from another layer, and added to some": (
        lambda: Net(
            lambda n, x: assigned(x, [6, 1, 2], n.b(x)) + assigned(x, slice(4), x[:, :4] + n.c(x)),
            b=nn.Conv2d(8, 3, 1),
            c=nn.Conv2d(8, 4, 1),
        ),
        {"a": (2, 1), "a#2": (2, 1), "a#3": (3, 1)},
    ),
    "every other channel assigned": (lambda: Net(lambda n, x: assigned(x, slice(0, 8, 2), x[:, ::2].tanh())), {"a": (8, 1)}),
    "a constant channel": (lambda: Net(lambda n, x: assigned(x, slice(3, 4), 0.5)), {"a": (7, 1)}),
    "products of pixels by einsum": (
        lambda: Net(lambda n, x: similarity(n.q(x), n.k(x)), q=nn.Conv2d(8, 6, 1), k=nn.Conv2d(8, 6, 1)),
        {"a": (8, 1), "q": (6, 1)},
    ),
}

DEFAULT = (
    "squeeze-excite by einsum",
    "transposed convolution with groups",
    "group norm by means",
    "layer norm over the first axis",
    "a gate for every other channel",
    "channels assigned by a list, from another layer, and added to some",
    "attention with one head",
    "products of pixels by einsum",
)
"""The others are slow only because there are many."""


@pytest.mark.parametrize("name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in NETS])
def test_an_unusual_spelling_is_proven_and_loses_channels_like_the_usual_one(name: str) -> None:
    net, expected = NETS[name]
    space = space_of(net)

    assert {group.name: (group.channels, group.bundle) for group in space.groups} == expected
    assert {layer.reason for layer in space.frozen} <= {"its channels are the network's output"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transposed convolution with groups", {"a": (4, 2)}),
        pytest.param("group norm by means", {"a": (4, 2)}, marks=pytest.mark.slow),  # no layer with groups, so evenly in any case
    ],
)
def test_whole_groups_leave_an_unusual_spelling(name: str, expected: Found) -> None:
    space = space_of(NETS[name][0], "whole")

    assert {group.name: (group.channels, group.bundle) for group in space.groups} == expected


class ManyKinds(nn.Module):
    """x -> a: conv(8) -> pixel unshuffle -> b: conv(12), spectral norm -> GLU -> c: two outputs per channel -+-> d: conv(16) -+
    -> sum -> e: Conv3d(10) -> f: Conv1d(7) -> mean -> head                          every second pixel, padded channels +
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), parametrizations.spectral_norm(nn.Conv2d(32, 12, 1))
        self.c, self.d = nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.e, self.f, self.head = nn.Conv3d(16, 10, 1), nn.Conv1d(10, 7, 1), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(F.glu(self.b(F.pixel_unshuffle(self.a(x), 2)), 1))
        x = self.d(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        answer: Tensor = self.head(self.f(self.e(x[:, :, None].relu()).flatten(2)).mean(2))
        return answer


def test_layers_of_many_kinds_lose_channels_in_one_network() -> None:
    space = space_of(ManyKinds)

    assert {group.name: (group.channels, group.bundle) for group in space.groups} == {
        "a": (8, 1),
        "b": (6, 2),
        "d": (4, 1),
        "e": (10, 1),
        "f": (7, 1),
    }
    assert [(layer.name, layer.reason) for layer in space.frozen] == [("head", "its channels are the network's output")]


def multi_query(n: nn.Module, x: Tensor) -> Tensor:
    """attention of four heads with one key and one value for all of them; a bias is added to the heads' results"""
    x = x.flatten(2).mT
    query = n.q(x).unflatten(2, (4, 6)).transpose(1, 2)
    y = F.softmax(query @ n.k(x)[:, None].mT, -1) @ n.v(x)[:, None]
    y = n.o(F.gelu(y.transpose(1, 2).flatten(2) + n.s.bias))
    return y.mT.unflatten(2, (8, 8))


def test_of_two_kinds_of_channels_on_one_axis_those_with_more_weights_leave() -> None:
    """after the product, an axis of 20 holds 4 heads, which the queries give, and 5 channels, which the one value gives"""
    space = space_of(lambda: Net(multi_query, q=linear(8, 24), k=linear(8, 6), v=linear(8, 5), o=linear(20, 8), s=Scale(20)))

    assert {group.name: (group.channels, group.bundle) for group in space.groups} == {"a": (8, 1), "q": (4, 6), "o": (8, 1)}
    assert {layer.name: layer.reason for layer in space.frozen}["v"] == (
        "its channels share an axis with others at Add in the network's own forward(), and only one kind can leave"
    )
