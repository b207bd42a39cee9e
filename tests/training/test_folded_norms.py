"""Folded norms: a network answers the same while its BatchNorms are computed as a part of the layers before them."""

import copy

import pytest
import torch
from helpers.nets import EXAMPLE, ZOO, Chain, Residual, Unfolded, build
from torch import Tensor, nn

from pipeline.training.folded_norms import find_folds, folded, set_folds


class ReadTwice(nn.Module):
    """x -> conv(4) -+-> BatchNorm -> + -> mean: the convolution is also read without the BatchNorm
    +---------------+"""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x + self.norm(x)).mean((2, 3))


class NormWithReLU(nn.BatchNorm2d):
    """BatchNorm -> ReLU in one layer, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def pixels(count: int = 2) -> Tensor:
    return torch.randn(count, *EXAMPLE.shape[1:], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ZOO)
def test_with_folded_norms_every_network_of_the_zoo_answers_the_same(name: str) -> None:
    network = build(ZOO[name])
    set_folds(network, find_folds(network, pixels()))
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        expected = network(pixels(5))
        with folded(network):
            found = network(pixels(5))
        again = network(pixels(5))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, expected)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert list(network.state_dict()) == list(before)


@pytest.mark.parametrize(
    ("network", "folds"),
    [
        (Chain, [("a.0", "a.1"), ("b.0", "b.1")]),
        (Residual, [("stem.0", "stem.1"), ("inner.0", "inner.1"), ("outer.0", "outer.1")]),
        (ReadTwice, []),
    ],
)
def test_only_norms_that_alone_read_a_layer_are_folded(network: type[nn.Module], folds: list[tuple[str, str]]) -> None:
    assert list(find_folds(build(network), pixels())) == folds


def test_a_layer_that_runs_twice_keeps_its_norm() -> None:
    """conv(3) -> BatchNorm, and both once more"""
    layers = [nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)]

    assert find_folds(nn.Sequential(*layers, *layers).eval(), pixels()) == ()


def test_a_norm_behind_an_activation_stays() -> None:
    folds = find_folds(build(Unfolded), pixels())
    norms = {name for name, layer in build(Unfolded).named_modules() if isinstance(layer, nn.BatchNorm2d)}

    assert folds
    assert norms - {norm for _, norm in folds}


@pytest.mark.parametrize("inplace", [True, False])
def test_an_activation_between_layer_and_norm_is_noticed_even_in_place(inplace: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.BatchNorm2d(4)).eval()

    assert find_folds(network, pixels()) == ()


def test_a_fresh_network_whose_norms_change_nothing_yet_is_not_misjudged() -> None:
    """New BatchNorms have mean 0 and variance 1, so even a wrong fold would leave the outputs as they are."""
    assert find_folds(ReadTwice().eval(), pixels()) == ()


def test_what_else_a_norm_does_is_done_when_it_is_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), NormWithReLU(4), nn.Conv2d(4, 2, 3)).eval()
    nn.init.normal_(network[1].running_mean)
    set_folds(network, find_folds(network, pixels()))
    with torch.no_grad():
        expected = network(pixels())
        with folded(network):
            assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
            torch.testing.assert_close(network(pixels()), expected)


def test_a_copy_keeps_its_folds_and_a_layer_that_it_lost_is_left_out() -> None:
    network = build(Chain)
    set_folds(network, find_folds(network, pixels()))
    smaller = copy.deepcopy(network)
    smaller.a = nn.Identity()
    with folded(smaller):
        assert isinstance(smaller.b[1], nn.Identity)
