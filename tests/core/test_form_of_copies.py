"""A user's function may return a copy of its network, as an average of weights (EMA) is."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.core.network_form import Form, TensorNetwork, in_form
from pipeline.training.own_task import with_progress


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


def test_training_that_reports_its_progress_does_so_for_a_network_of_another_form() -> None:
    """in_form hides the network's own form, and with_progress looks for the argument `progress`"""
    form = Form({"boxes": None, "scores": None}, (("boxes",), ("scores",)))
    told: list[tuple[int, int]] = []

    def train(module: nn.Module, progress: Callable[[int, int], None]) -> nn.Module:
        progress(1, 2)
        return module

    with_progress(in_form(train, form), lambda done, total, text: told.append((done, total)))(Rebuilt())

    assert told == [(0, 0), (1, 2)]
