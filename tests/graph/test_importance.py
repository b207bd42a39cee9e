"""Importance: which channels go first, held against sums done by hand and gradients done by differences."""

import copy
from functools import cache

import pytest
import torch
from helpers.analysed import space_of
from helpers.nets import EXAMPLE, ZOO, build
from torch import Tensor, nn

from pipeline.core.plan import IMPORTANCES, Group, Importance, PruneSpace
from pipeline.graph.analyse import analyse
from pipeline.graph.importance import Batches, rank

LABELS = torch.tensor([0, 3])


def batches(count: int = 2) -> Batches:
    generator = torch.Generator().manual_seed(2)
    return [(torch.randn(2, 3, 8, 8, generator=generator), LABELS) for _ in range(count)]


class Two(nn.Module):
    """x (2 pixels) -> conv 1x1 (3) -> BatchNorm -> conv 1x1 (1): three channels, heard by one"""

    def __init__(self, sends: list[list[float]], hears: list[float], scales: list[float] | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(3) if scales else nn.Identity()
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor(sends)[:, :, None, None])
            self.b.weight.copy_(torch.tensor(hears)[None, :, None, None])
            if scales:
                self.norm.weight.copy_(torch.tensor(scales))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


@cache
def space_of_two(*, with_norm: bool) -> PruneSpace:
    """It does not depend on the weights."""
    module = Two([[1, 1]] * 3, [1, 1, 1], [1.0] * 3 if with_norm else None)
    return analyse(module.eval(), torch.ones(1, 2, 4, 4)).space


def order(module: Two, kind: Importance) -> tuple[int, ...]:
    space = space_of_two(with_norm=isinstance(module.norm, nn.BatchNorm2d))
    return rank(module.eval(), space, kind, [])["a"]


def test_l1_adds_up_sizes_and_l2_squares_them_first() -> None:
    """sent: |3| + |3| = 6, |5| + 0 = 5, 0 + |1| = 1 by l1; 4.2, 5 and 1 by l2; heard alike"""
    module = Two(sends=[[3, -3], [-5, 0], [0, 1]], hears=[1, 1, 1])

    assert order(module, "l1") == (0, 1, 2)
    assert order(module, "l2") == (1, 0, 2)


def test_a_channel_that_nobody_hears_is_worth_less() -> None:
    """sent 2, 3, 4 and heard 2, -3, 0.1: shares of the mean 0.67 + 1.18, 1 + 1.76, 1.33 + 0.06"""
    module = Two(sends=[[2, 0], [3, 0], [4, 0]], hears=[2, -3, 0.1])

    assert order(module, "l1") == (1, 0, 2)
    assert order(module, "l2") == (1, 0, 2)


def test_layers_weigh_alike_however_large_their_weights_are() -> None:
    """a thousand times larger weights in the first layer change nothing"""
    sends, hears = [[2.0, 0], [3, 0], [4, 0]], [2, -3, 0.1]
    loud = Two([[1000 * value for value in row] for row in sends], hears)

    assert order(loud, "l2") == order(Two(sends, hears), "l2")


def test_bn_looks_at_the_sizes_of_scales_only() -> None:
    """scales 0.1, -0.9, 0.5, against the order of the weights"""
    module = Two(sends=[[9, 9], [1, 1], [5, 5]], hears=[9, 1, 5], scales=[0.1, -0.9, 0.5])

    assert order(module, "bn") == (1, 2, 0)
    assert order(module, "l1") == (0, 2, 1)


def test_bn_is_l1_where_there_are_no_scales() -> None:
    module = Two(sends=[[3, -3], [-5, 0], [0, 1]], hears=[1, 1, 1])

    assert order(module, "bn") == order(module, "l1") == (0, 1, 2)


def test_ties_go_to_the_lower_channel() -> None:
    assert order(Two(sends=[[1, 1]] * 3, hears=[2, 2, 2]), "l2") == (0, 1, 2)
    assert order(Two(sends=[[1, 1], [2, 2], [1, 1]], hears=[2, 2, 2]), "l2") == (1, 0, 2)


def test_all_weights_zero_is_a_tie_too() -> None:
    assert order(Two(sends=[[0, 0]] * 3, hears=[0, 0, 0]), "l2") == (0, 1, 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["chain", "residual", "flatten", "shared", "grouped"])
def test_taylor_is_what_a_little_less_of_a_channel_does_to_the_loss(name: str, seed: int) -> None:
    """each layer's share of a channel is scaled by 1 + h and by 1 - h: central differences in double precision"""
    module = build(ZOO[name], seed).double()
    space = space_of(ZOO[name])
    data = [(images.double(), labels) for images, labels in batches()]
    expected = {group.name: _by_differences(module, group, data) for group in space.groups}
    found = rank(module, space, "taylor", data)

    assert found == {group: tuple(scores.argsort(descending=True, stable=True).tolist()) for group, scores in expected.items()}


def _by_differences(module: nn.Module, group: Group, data: Batches, h: float = 1e-5) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    layers = {name for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    for slot in group.slots:
        layer, _, kind = slot.tensor.rpartition(".")
        if kind != "weight" or layer not in layers:
            continue
        scores = []
        for channel in range(group.channels):
            entries = torch.tensor([e for e, c in zip(slot.entries, slot.channels, strict=True) if c == channel])
            more, less = (_loss_with(module, slot.tensor, slot.axis, entries, 1 + step, data) for step in (h, -h))
            scores.append(abs(more - less) / (2 * h))
        total += torch.tensor(scores) / (sum(scores) / len(scores))
    return total


def _loss_with(module: nn.Module, tensor: str, axis: int, entries: Tensor, factor: float, data: Batches) -> float:
    other = copy.deepcopy(module)
    with torch.no_grad():
        weight = other.get_parameter(tensor)
        weight.index_copy_(axis, entries, weight.index_select(axis, entries) * factor)
        return sum(float(nn.functional.cross_entropy(other(images), labels)) for images, labels in data)


@pytest.mark.parametrize("kind", IMPORTANCES)
@pytest.mark.parametrize("name", ZOO)
def test_every_group_is_ranked_completely(name: str, kind: Importance) -> None:
    module, space = build(ZOO[name]), space_of(ZOO[name])
    found = rank(module, space, kind, batches(1))

    assert {group: sorted(channels) for group, channels in found.items()} == {
        group.name: list(range(group.channels)) for group in space.groups
    }


def test_taylor_alone_reads_the_batches() -> None:
    class Untouchable:
        def __iter__(self) -> "Untouchable":
            raise AssertionError("read")

    module, space = build(ZOO["chain"]), space_of(ZOO["chain"])

    assert set(rank(module, space, "l2", Untouchable())) == {"a.0", "b.0"}  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="read"):
        rank(module, space, "taylor", Untouchable())  # type: ignore[arg-type]


def test_taylor_leaves_no_gradient_and_the_flags_as_they_were() -> None:
    """the stem was frozen by its owner"""
    module = build(ZOO["residual"])
    module.stem.requires_grad_(False)
    before = {name: tensor.requires_grad for name, tensor in module.named_parameters()}
    rank(module, space_of(ZOO["residual"]), "taylor", batches(1))

    assert {name: tensor.requires_grad for name, tensor in module.named_parameters()} == before
    assert all(tensor.grad is None for tensor in module.parameters())


def test_flags_are_restored_when_a_batch_does_not_fit() -> None:
    """a label that the network does not know"""
    module = build(ZOO["chain"])
    module.a.requires_grad_(False)
    space = space_of(ZOO["chain"])

    with pytest.raises(IndexError):
        rank(module, space, "taylor", [(EXAMPLE, torch.tensor([99]))])
    assert not any(tensor.requires_grad for tensor in module.a.parameters())


def test_a_frozen_layer_is_ranked_by_its_gradient_all_the_same() -> None:
    module, space = build(ZOO["residual"]), space_of(ZOO["residual"])
    free = rank(module, space, "taylor", batches(1))

    assert rank(module.requires_grad_(False), space, "taylor", batches(1)) == free


def test_ranking_is_repeatable() -> None:
    module, space = build(ZOO["squeeze-excite"]), space_of(ZOO["squeeze-excite"])

    assert rank(module, space, "taylor", batches()) == rank(module, space, "taylor", batches())


def test_batchnorm_statistics_survive_taylor() -> None:
    """a network handed over in training mode would move them with every batch"""
    module, space = build(ZOO["chain"]), space_of(ZOO["chain"])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rank(module.train(), space, "taylor", batches())

    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_space_without_groups_has_an_empty_ranking() -> None:
    assert rank(build(ZOO["chain"]), PruneSpace(()), "l1", []) == {}
