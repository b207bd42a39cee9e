"""The last comparison of file and network: rounding is told apart from a wrong file."""

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pipeline.errors import ShipError
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
