"""Optimise: what an exported graph looks like follows from the network's code, whatever its weights are."""

from collections.abc import Callable

import onnx
import pytest
import torch
from helpers.analysed import exported
from helpers.nets import EXAMPLE, ZOO, conv
from torch import Tensor, nn

from pipeline.graph.export import export, stripped
from pipeline.graph.structure import structure


class Switched(nn.Module):
    """x -> conv(8) -+-> * scale -> conv(8) -> * gate -+-> mean -> linear: scale and gate are single numbers, 0 or 1 at first"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = conv(3, 8), conv(8, 8), nn.Linear(8, 5)
        self.scale, self.gate = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(1))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x * self.scale + self.shift) * self.gate).mean((2, 3)))


class Twins(nn.Module):
    """x -+-> conv(4) -+-> concat(4 + 4) -> mean -> linear
    +----> conv(4) -+   two layers that may hold equal weights"""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


class BatchStatistics(nn.Module):
    """x -> conv(6) -> BatchNorm of this batch, always -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.a(x)).square().mean((2, 3)))


NETS = {
    **{name: ZOO[name] for name in ("residual", "flatten", "transposed")},
    "switched": Switched,
    "twins": Twins,
    "batch statistics": BatchStatistics,
}


SIMILAR = ("flatten", "transposed")
"""Networks that are tried in all tests only: the rules that could look at their weights are those for the other networks."""


def filled(module: nn.Module, value: float) -> nn.Module:
    """`module` with one and the same number in all weights and statistics."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(value)
    return module


Outline = tuple[str, list[str]]


def outline(module: nn.Module) -> Outline:
    return outline_of(export(module.eval(), EXAMPLE, 18, 9))


def outline_of(model: onnx.ModelProto) -> Outline:
    graph = stripped(model, 9)
    return structure(graph), sorted(node.op_type for node in graph.graph.node)


def outline_when_trained(factory: Callable[[], nn.Module]) -> Outline:
    return outline_of(exported(factory))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SIMILAR)) for name in NETS])
def test_weights_of_zeros_ones_or_any_numbers_make_the_same_graph(name: str) -> None:
    trained = outline_when_trained(NETS[name])

    assert outline(filled(NETS[name](), 0.0)) == trained
    assert outline(filled(NETS[name](), 1.0)) == trained


def test_a_network_fresh_from_its_factory_makes_the_graph_that_it_makes_when_it_is_trained() -> None:
    """BatchNorms with mean 0, variance 1, scale 1 and shift 0: every folded bias is zero"""
    fresh = outline(ZOO["residual"]())

    assert fresh == outline_when_trained(ZOO["residual"])


def test_a_convolution_without_a_bias_gets_none() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu()).mean((2, 3))

    graph = export(filled(Plain(), 0.0), EXAMPLE, 18, 9).graph

    assert [len(node.input) for node in graph.node if node.op_type == "Conv"] == [2, 3]
