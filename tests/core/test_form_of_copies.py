"""A user's function may return a copy of its network, as an average of weights (EMA) is."""

import copy

import torch
from torch import Tensor, nn

from pipeline.core.network_form import Form, TensorNetwork, in_form


class Rebuilt(TensorNetwork):
    """x -> (x, 2 x)"""

    input_names, output_names = ("input",), ("boxes", "scores")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


def test_a_copy_that_training_returns_answers_in_tensors_again() -> None:
    form = Form({"boxes": None, "scores": None}, (("boxes",), ("scores",)))

    def train(module: nn.Module) -> nn.Module:
        assert set(module(torch.ones(1))) == {"boxes", "scores"}
        return copy.deepcopy(module)

    trained = in_form(train, form)(Rebuilt())
    found = in_form(lambda module: module(torch.ones(1))["scores"].item(), form)(trained)

    assert found == 2.0
    assert isinstance(trained(torch.ones(1)), tuple)
