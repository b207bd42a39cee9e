"""Spatial entropy: known answers, a slow plain formula, and no reward for killing channels."""

import copy
import math
from collections import Counter
from statistics import harmonic_mean

import pytest
import torch
from helpers.nets import Chain, Residual, build
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.plan import PruneSpace
from pipeline.graph.analyse import analyse
from pipeline.graph.shrink import shrink
from pipeline.graph.spatial_entropy import LEVELS, pair_counts, pair_entropy, relative_entropy, start_spatial_entropy


def entropy(maps: Tensor) -> tuple[float, bool]:
    """Of the one channel of (N, 1, H, W) with values in [0, 1]."""
    values, dead = relative_entropy(pair_counts(maps, torch.zeros(1), torch.ones(1)))
    return float(values[0]), bool(dead[0])


def plainly(maps: Tensor) -> float:
    """The definition, with loops, for one channel of (N, 1, H, W) with values in [0, 1]."""
    values = []
    for down, right in ((0, 1), (1, 0)):
        pairs: Counter[tuple[int, int]] = Counter()
        for image in maps[:, 0].tolist():
            for i in range(len(image) - down):
                for j in range(len(image[0]) - right):
                    first, second = (min(int(value * LEVELS), LEVELS - 1) for value in (image[i][j], image[i + down][j + right]))
                    pairs[first, second] += 1
                    pairs[second, first] += 1
        total = sum(pairs.values())
        singles: Counter[int] = Counter()
        for (first, _), count in pairs.items():
            singles[first] += count
        one = -sum(count / total * math.log(count / total) for count in singles.values())
        two = -sum(count / total * math.log(count / total) for count in pairs.values())
        values.append((two - one) / one if one > 0 else 0.0)
    return sum(values) / 2


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_constant_map_has_none_and_is_dead() -> None:
    assert entropy(torch.full((2, 1, 8, 8), 0.3)) == (0.0, True)


def test_what_is_no_number_says_as_little_as_what_never_changes() -> None:
    maps = noise(4, 2, 8, 8)
    maps[:, 0] = torch.nan
    counts = pair_counts(maps, torch.zeros(2), torch.ones(2))

    assert pair_entropy(counts)[0] == 0.0
    assert pair_entropy(counts)[1] > 0.0


def test_independent_noise_has_all() -> None:
    assert entropy(noise(16, 1, 64, 64))[0] == pytest.approx(1.0, abs=0.01)


def test_noise_on_one_small_map_is_undersampled() -> None:
    """112 pairs for 256 cells look orderly; pooled over many images they do not."""
    assert entropy(noise(1, 1, 8, 8))[0] < 0.7
    assert entropy(noise(500, 1, 8, 8))[0] > 0.98


def test_a_checkerboard_has_none_though_it_is_alive() -> None:
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    value, dead = entropy(board.float()[None, None])

    assert value == pytest.approx(0.0, abs=1e-9)
    assert not dead


def test_stripes_have_it_in_one_direction_only() -> None:
    """Each row is one random level: the neighbour on the right is known, the one below is not."""
    stripes = noise(64, 1, 64, 1).expand(64, 1, 64, 64)

    assert entropy(stripes)[0] == pytest.approx(0.5, abs=0.01)
    assert entropy(stripes.mT)[0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 1, 5, 9), (7, 1, 12, 4)])
def test_it_is_the_plain_formula(shape: tuple[int, ...]) -> None:
    smooth = F.avg_pool2d(noise(*shape), 3, stride=1, padding=1)

    assert entropy(smooth)[0] == pytest.approx(plainly(smooth), abs=1e-9)


def test_each_channel_is_counted_in_its_own_cells() -> None:
    maps = noise(4, 3, 16, 16) * torch.tensor([1.0, 0.5, 0.1])[:, None, None]
    together, _ = relative_entropy(pair_counts(maps, torch.zeros(3), torch.ones(3)))

    for channel in range(3):
        assert float(together[channel]) == pytest.approx(entropy(maps[:, channel : channel + 1])[0], abs=1e-12)


def test_many_images_are_counted_like_few() -> None:
    """More than are quantised at once."""
    maps = noise(40, 2, 128, 128)
    low, high = torch.zeros(2), torch.ones(2)

    assert torch.equal(pair_counts(maps, low, high), sum(pair_counts(part, low, high) for part in maps.split(7)))


def test_of_a_narrowed_layer_the_channels_that_stay_keep_their_figures() -> None:
    """x -> conv(8) -> conv(12): channels 1, 4, 6 of the first are what they were, and so is their entropy."""
    net, images = build(Chain), noise(32, 3, 16, 16)
    space = analyse(net, images[:1]).space
    first = next(group for group in space.groups if group.name == "a.0")
    kept = {group.name: tuple(range(group.channels)) for group in space.groups} | {first.name: (1, 4, 6)}
    meter = start_spatial_entropy(net, space, images)
    low, high = (edge[[1, 4, 6]] for edge in meter.ranges["a.0"])
    small = shrink(net, space, kept)
    with torch.no_grad():
        first_layer = mean_entropy(net.a(images)[:, [1, 4, 6]], low, high)
        second_layer = mean_entropy(small.b(small.a(images)), *meter.ranges["b.0"])

    assert {name: len(low) for name, (low, _) in meter.ranges.items()} == {"a.0": 8, "b.0": 12}
    assert meter.of(small, kept).entropy == pytest.approx((first_layer + second_layer) / 2, abs=1e-6)


def test_of_the_dense_networks_entropy_that_share_is_kept_whose_channels_stay() -> None:
    """x -> conv(8) -> conv(12): of the first, channels 1, 4, 6 stay as they were; the second hears less, and less of it is kept"""
    net, images = build(Chain), noise(32, 3, 16, 16)
    space = analyse(net, images[:1]).space
    whole = {group.name: tuple(range(group.channels)) for group in space.groups}
    kept = whole | {"a.0": (1, 4, 6)}
    meter = start_spatial_entropy(net, space, images)
    small = shrink(net, space, kept)
    with torch.no_grad():
        first = entropies_of_pairs(net.a(images), *meter.ranges["a.0"])
        second = entropies_of_pairs(small.b(small.a(images)), *meter.ranges["b.0"])
    shares = [float(first[[1, 4, 6]].sum() / first.sum()), min(1.0, float(second.sum()) / meter.whole["b.0"])]

    assert meter.of(net, whole).kept == pytest.approx(1)
    assert meter.of(small, kept).kept == pytest.approx(harmonic_mean(shares), abs=1e-6)


def entropies_of_pairs(maps: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """0 for channels dead from the start."""
    found = torch.zeros(len(low), dtype=torch.double)
    alive = high > low
    found[alive] = pair_entropy(pair_counts(maps[:, alive], low[alive], high[alive]))
    return found


def test_the_entropy_of_pairs_is_the_plain_formula() -> None:
    """left half black, right half white, 4 x 4: of 12 pairs to the right 4 black, 4 white, 4 mixed; of 12 down 6 and 6"""
    board = torch.zeros(1, 1, 4, 4)
    board[..., 2:] = 1
    right = -(math.log(1 / 3) * 2 / 3 + 2 * math.log(1 / 6) / 6)

    assert float(pair_entropy(pair_counts(board, torch.zeros(1), torch.ones(1)))) == pytest.approx((right + math.log(2)) / 2)


def mean_entropy(maps: Tensor, low: Tensor, high: Tensor) -> float:
    """Of the channels that were alive."""
    alive = high > low
    values, dead = relative_entropy(pair_counts(maps[:, alive], low[alive], high[alive]))
    return float(values.masked_fill(dead, 1.0).mean())


def test_killing_a_channel_is_not_rewarded() -> None:
    """Three channels whose weights are zero: without the rule their entropy of nothing would count as order."""
    net, images = build(Residual), noise(32, 3, 16, 16)
    space = analyse(net, images[:1]).space
    kept = {group.name: tuple(range(group.channels)) for group in space.groups}
    meter = start_spatial_entropy(net, space, images)
    low, high = meter.ranges["inner.0"]
    alive = torch.nonzero(high > low)[:, 0]
    crippled = copy.deepcopy(net)
    with torch.no_grad():
        crippled.inner[1].weight[alive[:3]] = 0
        crippled.inner[1].bias[alive[:3]] = 0
    whole, killed = meter.of(net, kept), meter.of(crippled, kept)

    assert whole.dead_share == 0
    assert killed.dead_share == pytest.approx(3 / len(alive) / 3)
    assert killed.entropy > whole.entropy
    assert killed.kept < whole.kept == 1


class Functional(nn.Module):
    """conv(4) -> BatchNorm -> relu, the last one a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


def test_what_is_looked_at_is_the_activation_be_it_a_module_or_a_function() -> None:
    net, images = Functional().eval(), noise(8, 3, 12, 12)
    modules = nn.Sequential(net.conv, net.norm, nn.ReLU(inplace=True)).eval()
    function, module = (start_spatial_entropy(each, PruneSpace(()), images).ranges for each in (net, modules))

    assert torch.equal(function["conv"][0], torch.zeros(4))
    assert torch.equal(function["conv"][1], module["0"][1])


def test_of_large_maps_every_fourth_image_is_counted() -> None:
    """64 maps of 32x32 are eight times as many pixels as are needed, and 16 images are the fewest"""
    net, images = Functional().eval(), noise(64, 3, 34, 34)
    meter = start_spatial_entropy(net, PruneSpace(()), images)
    with torch.no_grad():
        maps = net(images)
    counted, all_of_them = (float(entropies_of_pairs(each, *meter.ranges["conv"]).sum()) for each in (maps[::4], maps))

    assert meter.whole["conv"] == pytest.approx(counted, rel=1e-6)
    assert counted == pytest.approx(all_of_them, rel=0.02)


def test_channels_dead_from_the_start_do_not_count() -> None:
    net, images = Functional().eval(), noise(8, 3, 12, 12)
    before = start_spatial_entropy(net, PruneSpace(()), images).of(net, {})
    with torch.no_grad():
        net.norm.bias[1] = -100.0
    after = start_spatial_entropy(net, PruneSpace(()), images).of(net, {})

    assert before.dead_share == after.dead_share == 0.0


def test_the_network_is_left_as_it_was() -> None:
    net, images = build(Chain), noise(8, 3, 16, 16)
    before = copy.deepcopy(net.state_dict())
    start_spatial_entropy(net, PruneSpace(()), images).of(net, {})

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_arguments_that_are_named_are_seen_as_well() -> None:
    class Named(nn.Module):
        def __init__(self, by_name: bool) -> None:
            super().__init__()
            self.a, self._by_name = nn.Conv2d(3, 8, 3), by_name

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(input=F.conv2d(x, weight=self.a.weight)) if self._by_name else F.relu(F.conv2d(x, self.a.weight))

    images = noise(8, 3, 12, 12)
    named, plain = build(lambda: Named(True)), build(lambda: Named(False))

    assert (
        start_spatial_entropy(named, PruneSpace(()), images).whole
        == start_spatial_entropy(plain, PruneSpace(()), images).whole
        != {}
    )
