"""The last comparison of file and network: rounding is told apart from a wrong file."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pipeline.core.onnx_outputs import TOLERANCE
from pipeline.errors import ShipError
from pipeline.graph.rounding import allowed_difference
from pipeline.packaging.verify import verified_file

IMAGES = torch.randn(32, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Steep(nn.Module):
    """softmax(3000 * linear(x)): the last bits of the linear layer are visible in the probabilities"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(48, 2)
        with torch.no_grad():  # the classes are nearly alike, so that probabilities lie between 0 and 1
            self.head.weight[1] = self.head.weight[0] + 3e-5 * torch.randn(48)
            self.head.bias[1] = self.head.bias[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (3000 * self.head(x.flatten(1))).softmax(1)


def file_of(net: Steep, error: float) -> bytes:
    """The network as a file, whose weights are off by this share."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]> net (float[1,3,4,4] x) => (float[1,2] y) {
        a = Flatten (x)  b = Gemm <transB = 1> (a, w, c)  s = Constant <value_float = 3000.0> ()  d = Mul (b, s)  y = Softmax (d)
    }""")
    noise = torch.randn(2, 48, generator=torch.Generator().manual_seed(1))
    weight = net.head.weight.detach() * (1 + error * noise)
    for name, values in (("w", weight), ("c", net.head.bias.detach())):
        model.graph.initializer.append(numpy_helper.from_array(values.numpy(), name))
    return model.SerializeToString()


def test_a_difference_that_rounding_explains_does_not_cost_the_artifact() -> None:
    net = Steep().eval()

    assert verified_file(net, file_of(net, 3e-7), IMAGES).data


def test_a_larger_difference_is_an_error() -> None:
    net = Steep().eval()

    with pytest.raises(ShipError, match="the outputs of the ONNX file differ from the network's on "):
        verified_file(net, file_of(net, 1e-3), IMAGES)


class Variance(nn.Module):
    """The variance of large numbers, times a weight. It loses no digits, because it computes in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).double().var(1, unbiased=False, keepdim=True).float() * self.weight


def variance_by_cancellation(weight: list[float]) -> bytes:
    """E[x^2] - E[x]^2 in single precision: x is near 100, so most digits cancel."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]> net (float[1,3,4,4] x) => (float[1,2] y) {
        f = Flatten (x)  axes = Constant <value_ints = [1]> ()
        q = Mul (f, f)  s = ReduceMean (q, axes)  m = ReduceMean (f, axes)  n = Mul (m, m)  v = Sub (s, n)  y = Mul (v, w)
    }""")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([weight], dtype=np.float32), "w"))
    return model.SerializeToString()


def test_a_file_that_loses_more_digits_than_torch_is_taken() -> None:
    """as magika's LayerNorm does, which ONNX Runtime adds in another order"""
    net, images = Variance().eval(), IMAGES + 100

    assert allowed_difference(net, images) == TOLERANCE
    assert verified_file(net, variance_by_cancellation([1.0, 2.0]), images).data


@pytest.mark.parametrize("weight", [[1.0, 2.1], [2.0, 1.0]], ids=["one weight is off", "the weights are in another order"])
def test_a_wrong_file_that_loses_as_many_digits_is_an_error(weight: list[float]) -> None:
    with pytest.raises(ShipError, match=r"differ from the network's on .* rounding explains "):
        verified_file(Variance().eval(), variance_by_cancellation(weight), IMAGES + 100)
