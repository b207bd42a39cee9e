"""Shrinking, and rebuilding the shrunk network from nothing but its factory and its tensors."""

import io

import numpy as np
import pytest
import torch
from helpers.analysed import space_of
from helpers.nets import EXAMPLE, ZOO, build
from torch import Tensor, nn

from pipeline.core.plan import ChannelPlan
from pipeline.errors import WeightsError
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import random_kept
from pipeline.graph.shrink import all_channels, keep_channels, rebuild, shrink

OWN = [name for name in ZOO if name != "padded"]
"""Networks whose own module runs narrowed. The other one repeats its widths in its code."""


def answer(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(EXAMPLE).numpy()


def shrunk(name: str, seed: int = 3) -> nn.Module:
    space = space_of(ZOO[name])
    return shrink(build(ZOO[name]), space, random_kept(space, seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OWN)
def test_a_rebuilt_network_answers_like_the_shrunk_one_bit_for_bit(name: str, seed: int) -> None:
    """the factory is called again, its own weights are forgotten"""
    small = shrunk(name, seed)
    rebuilt = rebuild(build(ZOO[name], seed=99), small.state_dict())

    np.testing.assert_array_equal(answer(small), answer(rebuilt))


@pytest.mark.parametrize("name", OWN)
def test_layers_of_a_rebuilt_network_say_their_true_widths(name: str) -> None:
    """what is printed is what is there"""
    small = shrunk(name)

    assert str(rebuild(build(ZOO[name]), small.state_dict())) == str(small)
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
        if isinstance(layer, nn.BatchNorm2d):
            assert {len(layer.weight), len(layer.bias), len(layer.running_mean), len(layer.running_var)} == {layer.num_features}


def test_a_depthwise_convolution_stays_depthwise() -> None:
    """conv(8) -> depthwise(8), five channels kept: 5 groups of 1"""
    module, space = build(ZOO["depthwise"]), space_of(ZOO["depthwise"])
    small = shrink(module, space, {**all_channels(space), "expand.0": (0, 2, 3, 6, 7)})

    assert (small.filter[0].groups, small.filter[0].in_channels, small.filter[0].out_channels) == (5, 5, 5)


def test_a_grouped_convolution_keeps_its_groups() -> None:
    """conv(8) -> conv(12) in 4 groups, one input and two outputs kept of each group"""
    module, space = build(ZOO["grouped"]), space_of(ZOO["grouped"])
    small = shrink(module, space, {**all_channels(space), "a.0": (1,), "b.0": (0, 2)})

    assert (small.b[0].groups, small.b[0].in_channels, small.b[0].out_channels) == (4, 4, 8)
    # channel c of 3 is the outputs c, c + 3, c + 6 and c + 9; the middle one of each group is gone
    np.testing.assert_array_equal(small.b[0].weight.detach()[:, 0], module.b[0].weight.detach()[[0, 2, 3, 5, 6, 8, 9, 11]][:, 1])


def test_a_rebuilt_network_can_be_saved_and_read_again() -> None:
    small = shrunk("residual")
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)

    np.testing.assert_array_equal(
        answer(rebuild(build(ZOO["residual"], seed=5), torch.load(file, weights_only=True))), answer(small)
    )


def test_a_rebuilt_network_does_not_share_its_numbers() -> None:
    """training it must not change the tensors it was made of"""
    tensors = shrunk("chain").state_dict()
    before = tensors["a.0.weight"].clone()
    rebuilt = rebuild(build(ZOO["chain"]), tensors)
    with torch.no_grad():
        rebuilt.a[0].weight.zero_()

    assert torch.equal(tensors["a.0.weight"], before)


def test_a_shrunk_network_does_not_share_its_numbers_even_where_nothing_was_removed() -> None:
    module, space = build(ZOO["chain"]), space_of(ZOO["chain"])
    copy = shrink(module, space, all_channels(space))
    with torch.no_grad():
        copy.a[0].weight.zero_()

    assert module.a[0].weight.abs().sum() > 0


def test_a_rebuilt_network_learns_in_all_its_layers() -> None:
    """every parameter is a parameter, with a gradient"""
    rebuilt = rebuild(build(ZOO["flatten"]), shrunk("flatten").state_dict())
    rebuilt.train()(EXAMPLE.repeat(2, 1, 1, 1)).sum().backward()

    assert all(tensor.grad is not None for tensor in rebuilt.parameters())


def test_one_convolution_used_twice_is_still_one() -> None:
    small = shrunk("shared")
    rebuilt = rebuild(build(ZOO["shared"]), small.state_dict())

    assert len(list(rebuilt.parameters())) == len(list(build(ZOO["shared"]).parameters()))
    assert rebuilt.same.in_channels == rebuilt.same.out_channels == rebuilt.stem[0].out_channels


def test_one_tensor_under_two_names_is_still_one() -> None:
    """two linear layers that share their weight, as embeddings do, behind a convolution that shrinks"""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.one, self.other = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), nn.Linear(6, 5)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).mean((2, 3))
            return self.one(x) + self.other(x * x)

    module = build(Tied)
    space = analyse(module, EXAMPLE).space
    small = shrink(module, space, {"a": (0, 3, 4)})
    rebuilt = rebuild(build(Tied, seed=4), small.state_dict())

    assert small.one.weight is small.other.weight
    assert rebuilt.one.weight is rebuilt.other.weight
    assert tuple(rebuilt.one.weight.shape) == (5, 3)
    np.testing.assert_array_equal(answer(small), answer(rebuilt))


@pytest.mark.parametrize(("weights", "factory"), [("chain", "residual"), ("residual", "chain")])
def test_weights_of_another_network_are_refused_by_name(weights: str, factory: str) -> None:
    """a.0.weight is only in the chain, and comes first in the alphabet"""
    with pytest.raises(WeightsError, match=r"'a\.0\.weight' is in only one of the network and the weights; use the factory"):
        rebuild(build(ZOO[factory]), shrunk(weights).state_dict())


def test_a_tensor_larger_than_the_factorys_is_refused_by_name() -> None:
    """the factory was called for 5 classes, the weights have 7"""

    class Seven(nn.Sequential):
        def __init__(self, classes: int = 7) -> None:
            super().__init__(nn.Flatten(), nn.Linear(192, classes))

    with pytest.raises(WeightsError, match=r"'1\.weight' is \(7, 192\) in the weights and \(5, 192\) in the network; use the"):
        rebuild(Seven(5), Seven().state_dict())


def test_a_tensor_of_another_rank_is_refused_by_name() -> None:
    """conv1d weights for a linear layer"""
    with pytest.raises(WeightsError, match=r"'weight' is \(5, 3, 1\) in the weights and \(5, 3\) in the network"):
        rebuild(nn.Linear(3, 5), nn.Conv1d(3, 5, 1).state_dict())


def test_kept_channels_are_the_first_of_the_ranking_in_their_own_order() -> None:
    """ranked 4, 0, 2, 1, 3 and three kept: 0, 2, 4"""
    assert keep_channels(ChannelPlan.of({"a": 3, "b": 1}), {"a": (4, 0, 2, 1, 3), "b": (1, 0)}) == {"a": (0, 2, 4), "b": (1,)}
