"""Rounding: a deep network may differ from its graph by what single precision costs it, and not by more."""

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.core.onnx_outputs import TOLERANCE, all_outputs, largest_difference
from pipeline.graph.double_precision import double_outputs
from pipeline.graph.rounding import LARGEST, agrees, allowed_difference


class Growing(nn.Module):
    """x -> (x + large) - large: the larger the number, the more digits of x are lost in single precision"""

    def __init__(self, large: float) -> None:
        super().__init__()
        self.large = large

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.large) - self.large


class OnlySingle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.eye(4)


X = (torch.rand(1, 4, generator=torch.Generator().manual_seed(0)),)


def test_an_ordinary_network_gets_the_usual_tolerance() -> None:
    assert allowed_difference(nn.Linear(4, 3), X) == TOLERANCE


def test_a_network_that_loses_digits_gets_more_and_one_that_loses_nearly_all_does_not_get_all() -> None:
    assert TOLERANCE < allowed_difference(Growing(1e4), X) < LARGEST
    assert allowed_difference(Growing(1e7), X) == LARGEST


def test_a_network_that_amplifies_the_rounding_of_its_weights_gets_more() -> None:
    """Softmax of large numbers with few digits behind the point. Its weights are integers, so double precision gives the same."""
    network = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Softmax(1))
    nn.init.constant_(network[0].get_parameter("weight"), 2.0**11)
    ones = (torch.ones(1, 4),)

    assert TOLERANCE < allowed_difference(network, ones) < LARGEST
    assert torch.equal(network(*ones), network.double()(ones[0].double()).float())


def test_a_graph_that_loses_fewer_digits_than_the_network_agrees_with_it() -> None:
    """the network's own answer is off by some percent, so that an exact one is far from it; one that is off by as much is wrong"""
    network, x = Growing(3e5), X[0]
    single, exact = network(x).numpy(), x.numpy()
    off = largest_difference(exact, single)

    assert off > LARGEST
    assert agrees(single, exact, network, X, b"")
    assert not agrees(single, exact + 2 * LARGEST, network, X, b"")


def test_a_network_that_does_not_run_in_double_precision_gets_the_usual_tolerance() -> None:
    assert allowed_difference(OnlySingle(), X) == TOLERANCE


def test_outputs_near_zero_may_differ_by_the_rounding_of_a_sigmoid_but_not_by_more() -> None:
    small = np.full((1, 4), 1e-7, dtype=np.float32)

    assert largest_difference(small, small + np.float32(2e-8)) <= TOLERANCE
    assert largest_difference(small, small + np.float32(2e-6)) > TOLERANCE


WIDE = torch.rand(1, 256, generator=torch.Generator().manual_seed(0))


def variance_of(weight: float) -> bytes:
    """w * (E[x^2] - E[x]^2)"""
    return onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18]> net (float[1,N] x) => (float[1,1] y) {{
        axes = Constant <value_ints = [1]> ()  w = Constant <value_float = {weight}> ()
        q = Mul (x, x)  s = ReduceMean (q, axes)  m = ReduceMean (x, axes)  n = Mul (m, m)  v = Sub (s, n)  y = Mul (v, w)
    }}""").SerializeToString()


class Variance(nn.Module):
    """the variance, computed in double precision"""

    def forward(self, x: Tensor) -> Tensor:
        return x.double().var(1, unbiased=False, keepdim=True).float()


def in_double(file: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    found = double_outputs(file, [[x]])
    assert found
    return found[0][0]


def test_a_file_whose_runtime_loses_more_digits_than_torch_agrees_with_the_network() -> None:
    """numbers near 15, whose squares cancel, so that the file is off by more than the usual tolerance, and torch by nothing"""
    network, x = Variance(), (WIDE + 15,)
    expected, file = network(*x).numpy(), variance_of(1.0)
    found = all_outputs(file, [x[0].numpy()])

    assert largest_difference(expected, found) > TOLERANCE == allowed_difference(network, x)
    assert largest_difference(expected, in_double(file, x[0].numpy())) < 1e-6
    assert agrees(expected, found, network, x, file)


def test_a_wrong_file_that_loses_as_many_digits_does_not_agree() -> None:
    """its weight is off by 2 %"""
    network, x, file = Variance(), (WIDE + 15,), variance_of(1.02)

    assert not agrees(network(*x).numpy(), all_outputs(file, [x[0].numpy()]), network, x, file)
