"""Supernet: one set of weights that serves every plan."""

import copy
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.analysed import space_of
from helpers.nets import ZOO, Chain, build
from torch import Tensor, nn

from pipeline.core.plan import Kept, PruneSpace
from pipeline.data.images import Images
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import TrainingDiverged
from pipeline.graph.shrink import all_channels, scatter_gradients, shrink
from pipeline.search.problem import Choice, SearchSpace
from pipeline.stages.supernet import Schedule, affordable_steps, plans_around, train_supernet
from pipeline.training.scoring import recalibrate

SPACE = SearchSpace(tuple(Choice(name, 32, tuple(range(2, 33, 2)), 0.1, 0.1) for name in "abcd"))


def images(count: int) -> Images:
    pixels = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Images(lambda chosen: pixels[chosen], torch.zeros(count, dtype=torch.long), torch.arange(count), Preprocessing())


def halves(space: PruneSpace) -> Kept:
    return {group.name: tuple(range(0, group.channels, 2)) for group in space.groups}


def trained(dense: nn.Module, checkpoint: Path, steps: int = 60, count: int = 512) -> nn.Module:
    space = space_of(type(dense))
    plans = iter([halves(space), all_channels(space)] * steps)
    return train_supernet(dense, space, Schedule(plans, steps), images(count), checkpoint)


def distance(dense: nn.Module, other: nn.Module) -> float:
    """Of the answers to images that none was trained on, as probabilities."""
    inputs = torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    recalibrate(other, [inputs])
    with torch.no_grad():
        return float((dense.eval()(inputs).softmax(1) - other.eval()(inputs).softmax(1)).abs().mean())


class Gain(nn.Module):
    """A number that scales a branch, a layer under two names, and weights that do not lie as they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.also = self.second
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(8, 5)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return self.head((y + self.gain * torch.relu(self.also(y))).mean((2, 3)))


NETS = {**ZOO, "gain": Gain}


@pytest.mark.parametrize("name", NETS)
def test_gradients_land_where_the_weights_came_from(name: str) -> None:
    """A weight of the whole network has moved exactly where the small one's has."""
    whole, space = build(NETS[name]), space_of(NETS[name])
    kept = halves(space)
    small = shrink(whole, space, kept)
    for parameter in small.parameters():
        parameter.grad = torch.randn_like(parameter)
    for parameter in whole.parameters():
        parameter.grad = torch.zeros_like(parameter)

    scatter_gradients(small, whole, space, kept)

    with torch.no_grad():
        for network in (whole, small):
            for parameter in network.parameters():
                parameter.sub_(parameter.grad)
    again = shrink(whole, space, kept)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), small.state_dict().values(), strict=True))
    given, arrived = (sum(float(p.grad.square().sum()) for p in network.parameters()) for network in (small, whole))
    assert arrived == pytest.approx(given)


def test_narrow_plans_answer_more_like_the_dense_network_than_before(tmp_path: Path) -> None:
    dense = build(Chain)
    with torch.no_grad():
        dense.head.weight.mul_(10)
    space = space_of(Chain)
    supernet = trained(dense, tmp_path / "supernet.safetensors")

    assert distance(dense, shrink(supernet, space, halves(space))) < distance(dense, shrink(dense, space, halves(space))) / 2


def test_the_same_again_gives_the_same_weights_and_the_dense_network_stays(tmp_path: Path) -> None:
    dense = build(Chain)
    before = copy.deepcopy(dense.state_dict())
    one, other = (trained(dense, tmp_path / name, steps=4).state_dict() for name in ("one", "other"))

    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], before[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_what_was_trained_is_taken_from_the_file(tmp_path: Path) -> None:
    def none() -> Tensor:
        raise AssertionError

    dense = build(Chain)
    first = trained(dense, tmp_path / "supernet.safetensors", steps=4)
    again = train_supernet(
        dense,
        space_of(Chain),
        Schedule((none() for _ in range(1)), 4),
        images(64),
        tmp_path / "supernet.safetensors",
    )

    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 129])
def test_few_images_are_seen_again(tmp_path: Path, count: int) -> None:
    found = trained(build(ZOO["residual"]), tmp_path / "supernet.safetensors", steps=5, count=count)

    assert all(torch.isfinite(tensor).all() for tensor in found.state_dict().values())


class Plain(nn.Module):
    """Two convolutions without BatchNorm: a high rate makes them overflow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def test_training_that_diverges_goes_back_and_on_with_a_lower_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1000 it diverges again and again; a few tenths of that later it follows the dense network."""
    dense = build(Plain)
    with torch.no_grad():
        dense.head.weight.mul_(10)
    monkeypatch.setattr("pipeline.stages.supernet.LEARNING_RATE", 1000.0)
    supernet = trained(dense, tmp_path / "supernet.safetensors", steps=40)

    assert all(torch.isfinite(tensor).all() for tensor in supernet.state_dict().values())
    assert distance(dense, supernet) < 0.2


@pytest.mark.parametrize("poisoned", ["images", "weights"])
def test_training_that_always_diverges_ends_with_an_error_and_no_file(tmp_path: Path, poisoned: str) -> None:
    dense, distillation_images = build(Chain), images(128)
    if poisoned == "weights":
        with torch.no_grad():
            dense.head.weight[0, 0] = torch.nan
    else:
        distillation_images = replace(distillation_images, fetch=lambda chosen: torch.full((len(chosen), 3, 16, 16), torch.nan))
    space = space_of(Chain)
    plans = repeat(all_channels(space))

    with pytest.raises(TrainingDiverged, match=r"supernet's training diverged at step 1 of 4.* --supernet 0"):
        train_supernet(dense, space, Schedule(plans, 4), distillation_images, tmp_path / "supernet.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_odd_networks_are_trained_and_kept(tmp_path: Path) -> None:
    dense = build(Gain)
    found = trained(dense, tmp_path / "supernet.safetensors", steps=4)
    again = trained(dense, tmp_path / "supernet.safetensors", steps=4)

    assert not torch.equal(found.gain, dense.gain)
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), again.state_dict().values(), strict=True))


def test_fixed_weights_stay(tmp_path: Path) -> None:
    dense = build(Chain)
    first = next(dense.parameters())
    first.requires_grad_(False)
    found = trained(dense, tmp_path / "supernet.safetensors", steps=4)

    assert torch.equal(next(found.parameters()), first)


def test_large_networks_get_fewer_steps_very_large_ones_none_and_small_data_few() -> None:
    assert affordable_steps(10**6, 4 * 10**6, 50_000) == 2000
    assert 100 <= affordable_steps(2 * 10**8, 8 * 10**8, 50_000) < 2000
    assert affordable_steps(10**10, 4 * 10**10, 50_000) == 0
    assert 100 <= affordable_steps(10**6, 4 * 10**6, 1000) < 1000


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_plans_lie_between_the_narrowest_wanted_and_the_whole_network(share: float) -> None:
    widths = np.array([[width for _, width in plan] for plan in islice(plans_around(SPACE, share, 0), 400)]) / 32
    means = widths.mean(axis=1)

    assert 0.2 * share <= means.min() < 0.5 * share
    assert means.max() > 0.9
    assert 0.15 < (np.ptp(widths, axis=1) == 0).mean() < 0.4
    assert np.ptp(widths, axis=1).mean() > 0.1
    assert np.array_equal(widths, np.array([[w for _, w in plan] for plan in islice(plans_around(SPACE, share, 0), 400)]) / 32)
