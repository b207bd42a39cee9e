"""Compensation: what the kept channels can say for the removed ones, they say."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.core.plan import Kept
from pipeline.graph.analyse import analyse
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.shrink import shrink

EXAMPLE = torch.zeros(1, 3, 8, 8)


def inputs() -> Tensor:
    return torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def twins(conv: nn.Conv2d) -> None:
    """The second half of the channels says what the first half says, twice as loud."""
    half = conv.out_channels // 2
    with torch.no_grad():
        conv.weight[half:] = 2 * conv.weight[:half]
        if conv.bias is not None:
            conv.bias[half:] = 2 * conv.bias[:half]


def narrowed(network: nn.Module, kept: Kept) -> tuple[nn.Module, nn.Module]:
    """The network without the channels that are not kept; and the same, compensated."""
    space = analyse(network, EXAMPLE).space
    plain = shrink(network, space, kept).eval()
    helped = copy.deepcopy(plain)
    start_reconstruction(network, space, [inputs()]).apply(helped, kept)
    return plain, helped


def error(network: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        wanted = network.eval()(inputs())
        return float((other(inputs()) - wanted).square().mean() / wanted.square().mean())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_channels_that_others_can_speak_for_are_not_missed() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)
    )
    twins(network[0])
    plain, helped = narrowed(network, {"0": (0, 1, 2, 3), "2": (0, 1, 2, 3, 4, 5)})
    assert error(network, plain) > 0.05
    assert error(network, helped) < 1e-3


def test_every_pixel_of_a_flattened_channel_is_taken_over() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5))
    twins(network[0])
    plain, helped = narrowed(network, {"0": (0, 2, 5, 7)})  # 5 speaks for 1, and 7 for 3
    assert error(network, plain) > 0.05
    assert error(network, helped) < 1e-3


def test_a_constant_channel_moves_into_the_bias() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2 * 36, 5))
    with torch.no_grad():
        network[0].weight[3] = 0.0
        network[0].bias[3] = 7.0
    plain, helped = narrowed(network, {"0": (0, 1, 2), "2": (0, 1)})
    assert error(network, plain) > 0.05
    assert error(network, helped) < 1e-9


def test_independent_channels_are_left_as_they_are() -> None:
    first = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(3)[:, :, None, None])
    network = nn.Sequential(first, nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
    plain, helped = narrowed(network, {"0": (0, 1), "1": (0, 1, 2, 3)})
    assert torch.allclose(plain[1].weight, helped[1].weight, atol=0.02)


def test_joined_branches_speak_for_one_another() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.after = nn.Conv2d(8, 5, 1)
            self.head = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.after(torch.relu(torch.cat([self.left(x), self.right(x)], 1))))
            return self.head(y.mean((2, 3)))

    network = Joined()
    network.right.load_state_dict(network.left.state_dict())
    with torch.no_grad():
        network.head.bias.zero_()  # or it would hide what is lost
        network.after.bias.fill_(-0.1)
    plain, helped = narrowed(network, {"left": (0, 1), "right": (2, 3), "after": (0, 1, 2, 3, 4)})
    assert error(network, plain) > 100 * error(network, helped)
    assert error(network, helped) < 1e-3


def test_a_plan_that_keeps_everything_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 5))
    plain, helped = narrowed(network, {"0": tuple(range(8)), "2": tuple(range(6))})
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), helped.state_dict().values(), strict=True))


def test_dead_channels_and_untrained_layers_do_no_harm() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 5))
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.fill_(-1.0)
    network[2].weight.requires_grad_(False)
    kept = {"0": (0, 1), "2": (0, 1, 2)}
    plain, helped = narrowed(network, kept)
    assert torch.equal(plain[2].weight, helped[2].weight)
    assert all(torch.isfinite(tensor).all() for tensor in helped.state_dict().values())


def test_a_layer_called_by_keyword_is_left_as_it_is() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.second(input=torch.relu(self.first(x)))).mean((2, 3)))

    network = ByKeyword()
    plain, helped = narrowed(network, {"first": (0, 1, 2, 3), "second": (0, 1, 2)})
    assert torch.equal(plain.second.weight, helped.second.weight)
    assert not torch.equal(plain.head.weight, helped.head.weight)


def test_a_layer_with_two_names_is_taken_once() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
            self.also = self.second
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.also(torch.relu(self.first(x)))).mean((2, 3)))

    network = Aliased()
    twins(network.first)
    with torch.no_grad():
        network.head.bias.zero_()
    plain, helped = narrowed(network, {"first": (0, 1, 2, 3), "second": tuple(range(6))})
    assert error(network, plain) > 0.01
    assert error(network, helped) < 1e-3


def test_the_whole_network_is_not_touched() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 5))
    before = copy.deepcopy(network.state_dict())
    narrowed(network, {"0": (0, 1), "2": (0, 1, 2)})
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_moments_of_many_batches_are_those_of_all_images() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2 * 36, 5))
    space = analyse(network, EXAMPLE).space

    def moments(batches: list[Tensor]) -> Reconstruction:
        return start_reconstruction(network, space, batches)

    at_once, in_parts = moments([inputs()]).moments["2"], moments(list(inputs().split(16))).moments["2"]
    assert torch.allclose(at_once.covariance, in_parts.covariance, atol=1e-6)
    assert torch.allclose(at_once.mean, in_parts.mean, atol=1e-6)
    read = torch.relu(network[0](inputs())).movedim(1, -1).reshape(-1, 4).detach().double()
    assert torch.allclose(at_once.covariance, torch.cov(read.T, correction=0), atol=1e-5)


def test_the_channels_of_a_grouped_convolution_are_replaced_group_by_group() -> None:
    """Each channel of the plan is one output of each group. The third and fourth output of a group repeat its first two."""
    grouped = nn.Conv2d(8, 8, 3, groups=2)
    with torch.no_grad():
        for tensor in (grouped.weight, grouped.bias):
            tensor[[2, 3, 6, 7]] = 2 * tensor[[0, 1, 4, 5]]
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), grouped, nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(216, 5)
    )
    space = analyse(network, EXAMPLE).space
    whole = {group.name: tuple(range(group.channels)) for group in space.groups}
    plain, helped = narrowed(network, {**whole, "2": (0, 1)})

    assert whole["2"] == (0, 1, 2, 3)
    assert error(network, plain) > 0.01
    assert error(network, helped) < 1e-3
