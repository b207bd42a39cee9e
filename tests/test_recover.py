"""Recovery: a short training after which scores tell good plans from bad ones."""

import copy

import torch
from torch import Tensor, nn

from pipeline.recover import Recovery, RecoverySettings, start_recovery


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(8, 3),
    )


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def started(dense: nn.Module, count: int = 512) -> Recovery:
    return start_recovery(dense, images(count).split(64), RecoverySettings())


def distance(dense: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float((dense.eval()(images(64)).softmax(1) - other.eval()(images(64)).softmax(1)).abs().mean())


def test_a_damaged_network_comes_nearer_to_the_dense_one() -> None:
    dense = network()
    with torch.no_grad():
        dense[6].weight.mul_(20)
    damaged = copy.deepcopy(dense)
    with torch.no_grad():
        damaged[6].weight.add_(2 * torch.randn_like(damaged[6].weight))
    before = distance(dense, damaged)
    started(dense)(damaged)
    assert distance(dense, damaged) < before / 2
    assert not damaged.training


def test_the_same_network_recovers_to_the_same_weights() -> None:
    dense = network(dropout=0.5)
    recovery = started(dense)
    one, other = copy.deepcopy(dense), copy.deepcopy(dense)
    recovery(one)
    torch.rand(7)  # whatever else was drawn meanwhile
    recovery(other)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_large_networks_get_fewer_steps_and_very_large_ones_none() -> None:
    steps = [RecoverySettings(32).affordable(macs).steps for macs in (10**6, 10**9, 10**11)]

    assert steps[0] == 32
    assert 4 <= steps[1] < 32
    assert steps[2] == 0
    assert RecoverySettings(0).affordable(1).steps == 0


def test_few_images_are_seen_again() -> None:
    for count in (1, 63, 64, 65, 129):
        recovery = started(network(), count=count)
        narrow = network()
        recovery(narrow)
        assert all(torch.isfinite(tensor).all() for tensor in narrow.state_dict().values())


def test_fixed_weights_stay() -> None:
    dense, narrow = network(), network()
    narrow.requires_grad_(False)
    before = copy.deepcopy(narrow.state_dict())
    started(dense)(narrow)
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow.state_dict().items())
