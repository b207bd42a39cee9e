"""The pair of graph and torch module: whose module it is, and that both stay one network while it is trained."""

import inspect
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from helpers.families import FAMILIES
from torch import Tensor, nn

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.graph.analyse import analyse
from pipeline.graph.counts import params
from pipeline.graph.prunable_network import PrunableNetwork, random_kept, rebuild_from_graph
from pipeline.graph.shrink import shrink

EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Halves(nn.Module):
    """x -> conv(8) -> batch norm -> halves, `cut` in two ways -> conv of one half, concatenated with the other -> conv(5)"""

    def __init__(self, cut: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.out = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(10, 5, 1)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.cut(self.norm(self.a(x)).relu())
        answer: Tensor = self.out(torch.cat([left, self.b(right).relu()], 1)).mean((2, 3))
        return answer


class Scaled(nn.Module):
    """x -> conv(6) -> times a constant in the code -> conv(5). A parameter that nobody reads is equal to it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.spare = nn.Parameter(torch.tensor(0.75))
        self.constant = torch.tensor(0.75)

    def forward(self, x: Tensor) -> Tensor:
        scaled = self.a(x).relu() * self.constant
        answer: Tensor = self.out(scaled).mean((2, 3))
        return answer


class Standardised(nn.Module):
    """(x - mean) / std, with buffers -> conv(8) -> halves -> concatenated with zeros of the code -> conv(5)"""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]))
        self.a, self.out = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a((x - self.mean.view(1, 3, 1, 1)) / self.std[None, :, None, None]).split((4, 4), 1)
        answer: Tensor = self.out(torch.cat([left + right, torch.zeros_like(left)], 1)).mean((2, 3))
        return answer


def test_buffers_and_zeros_of_the_code_are_not_learnt_and_are_no_parameters_of_the_shipped_file() -> None:
    found = analyse(Standardised().eval(), EXAMPLE)

    assert found.origin == "rebuilt"
    assert {name for name, weight in found.module.named_parameters() if weight.requires_grad} == {
        "a.weight",
        "a.bias",
        "out.weight",
        "out.bias",
    }
    assert params(found.deployed.slice({})) == sum(weight.numel() for weight in Standardised().parameters())


def halves() -> Halves:
    torch.manual_seed(0)
    return Halves(lambda x: x.split((4, 4), 1)).eval()


def plain() -> nn.Module:
    """x -> conv(8) -> batch norm -> relu -> conv(5) -> mean"""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()


def line_of(function: Callable[..., object], words: str) -> int:
    """The number of the first line of a function that has these words, in this file."""
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if words in line)


def difference(module: nn.Module, model: onnx.ModelProto) -> float:
    """How far the answers of torch and of ONNX Runtime are from each other, as a share of the largest."""
    with torch.no_grad():
        expected = module.eval()(EXAMPLE).numpy()
    return largest_difference(expected, run_onnx(model.SerializeToString(), EXAMPLE.numpy()))


def test_a_network_whose_code_runs_with_fewer_channels_is_pruned_itself() -> None:
    module = plain()
    found = analyse(module, EXAMPLE)

    assert (found.origin, found.reason) == ("own", "")
    assert found.module is module


def test_a_network_whose_code_repeats_the_widths_is_rebuilt_and_the_reason_says_so() -> None:
    found = analyse(halves(), EXAMPLE)

    assert found.origin == "rebuilt"
    assert found.reason.startswith("it does not run with fewer channels: split_with_sizes expects")
    assert found.reason.endswith(f"(test_prunable_network.py:{line_of(halves, 'split(')})")


def test_both_graphs_give_the_same_reasons_for_layers_that_are_not_prunable() -> None:
    """the deployed graph has no notes on modules; efficient channel attention slides over the channels"""
    found = analyse(*FAMILIES["eca"]())
    reasons = {layer.name: layer.reason for layer in found.deployed.labelled.space.frozen}

    assert reasons["body.1.0"] == "Conv in 'body.2.conv' slides over its channels"
    assert found.deployed.labelled.space.frozen == found.trainable.labelled.space.frozen == found.space.frozen


def test_a_network_whose_weights_are_computed_is_rebuilt_and_the_reason_says_so() -> None:
    """weight norm: the graph holds the product, and the network holds its two factors"""
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 1)), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    found = analyse(module, EXAMPLE)

    assert (found.origin, found.reason) == ("rebuilt", "the weights of '0' are computed from other tensors")


def test_a_weight_that_does_not_reach_the_graph_is_noticed() -> None:
    """the dense network and all slices answer like the graph; only with changed weights do they differ"""
    found = analyse(Scaled().eval(), EXAMPLE)

    assert found.origin == "rebuilt"
    assert found.reason.startswith("its answer differs by")


@pytest.mark.parametrize("make", [plain, halves], ids=["own", "rebuilt"])
def test_the_file_of_a_trained_network_answers_like_the_network(make: Callable[[], nn.Module]) -> None:
    found = analyse(make(), EXAMPLE)
    kept = random_kept(found.space, 1)
    small = shrink(found.module, found.space, kept).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        small(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()

    assert difference(small, found.deployed.slice(kept)) > TOLERANCE  # the training changed the answer
    assert difference(small, found.trained(small, kept)) <= TOLERANCE


def test_a_network_can_be_rebuilt_on_request_with_the_same_groups() -> None:
    own = analyse(plain(), EXAMPLE)
    again = rebuild_from_graph(own, EXAMPLE, "its code fails in training")

    assert (again.origin, again.reason) == ("rebuilt", "its code fails in training")
    assert [(group.name, group.channels) for group in again.space.groups] == [
        (group.name, group.channels) for group in own.space.groups
    ]


DEFAULT = ("resnet", "mobilenet-se-conv", "unet")
OWN = (
    *DEFAULT, "vgg", "resnext", "split-attention", "densenet", "inception", "repvgg", "ghostnet", "depth-multiplier", "convnext"
)  # fmt: skip
"""Families whose own code runs with fewer channels."""


@pytest.mark.parametrize("name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in OWN])
def test_the_rebuilt_network_learns_like_the_networks_own_code(name: str) -> None:
    """one batch of four images in training mode: the same loss, gradients and running statistics"""
    module, example = FAMILIES[name]()
    own = analyse(module, example)
    assert own.origin == "own"
    rebuilt = rebuild_from_graph(own, example, "to compare both")
    for layer in (*own.module.modules(), *rebuilt.module.modules()):
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    batch = torch.randn(4, *example.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    mine, its = _learned(own, batch), _learned(rebuilt, batch)
    assert mine.keys() <= its.keys()  # a rebuilt network also holds the constants of the code
    assert any(values.any() for values in mine.values())
    for key, values in mine.items():
        np.testing.assert_allclose(its[key], values, rtol=1e-6, atol=1e-9 * max(1.0, float(np.abs(values).max())), err_msg=key)


def _learned(found: PrunableNetwork, batch: Tensor) -> dict[str, np.ndarray]:
    """The loss of one training step, and the gradient or the new statistic of each initializer, in the layout of the graph."""
    module = found.module.double().train()
    loss = module(batch).square().mean()
    loss.backward()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    learned = {"loss": loss.detach().numpy()}
    shapes = {weight.name: weight.values.shape for weight in found.trainable.weights}
    state = module.state_dict()
    for initializer, place in found.tensors.items():
        tensor = parameters.get(place.name)
        values = state[place.name] if tensor is None else tensor.grad
        if values is None or initializer not in shapes:
            continue
        if values.dim() == len(place.axes) and -1 not in place.axes:
            values = values.permute(place.axes)
        learned[initializer] = values.reshape(shapes[initializer]).numpy()
    return learned
