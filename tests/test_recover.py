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


def started(dense: nn.Module, steps: int = 32, macs: int = 1000, count: int = 512) -> Recovery:
    return start_recovery(dense, images(count).split(64), RecoverySettings(steps), macs)


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
    dense = network()
    assert started(dense, macs=10**6).settings.steps == 32
    assert 4 <= started(dense, macs=10**9).settings.steps < 32
    huge = started(dense, macs=10**11)
    before = copy.deepcopy(dense.state_dict())
    huge(dense)
    assert huge.settings.steps == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_few_images_are_seen_again() -> None:
    for count in (1, 63, 64, 65, 129):
        recovery = started(network(), count=count)
        narrow = network()
        recovery(narrow)
        assert all(torch.isfinite(tensor).all() for tensor in narrow.state_dict().values())


def test_no_steps_read_no_images() -> None:
    def none() -> Tensor:
        raise AssertionError

    assert start_recovery(network(), (none() for _ in range(1)), RecoverySettings(0), 1000).settings.steps == 0


def test_fixed_weights_stay() -> None:
    dense, narrow = network(), network()
    narrow.requires_grad_(False)
    before = copy.deepcopy(narrow.state_dict())
    started(dense)(narrow)
    assert all(torch.equal(before[name], tensor) for name, tensor in narrow.state_dict().items())
