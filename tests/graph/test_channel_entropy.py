"""Channel entropy: known answers, numpy's own correlation, and nothing for channels that are dead or say the same."""

import copy
import math
from statistics import harmonic_mean

import numpy as np
import pytest
import torch
from helpers.nets import Chain, build
from torch import Tensor, nn

from pipeline.graph.analyse import analyse
from pipeline.graph.channel_entropy import effective_channels, start_channel_entropy
from pipeline.graph.shrink import shrink


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_channels_that_have_nothing_to_do_with_each_other_count_each() -> None:
    assert effective_channels(noise(20000, 8)) == pytest.approx(8, rel=0.002)


def test_channels_that_say_the_same_count_as_one() -> None:
    """also scaled, shifted and turned round"""
    one = noise(500, 1)

    assert effective_channels(torch.cat([one, 3 * one, one - 7, -one], 1)) == pytest.approx(1, abs=1e-3)


def test_each_voice_counts_by_how_often_it_is_heard() -> None:
    """a b b b, a and b independent: eigenvalues 1/4 and 3/4"""
    a, b = noise(20000, 2).split(1, 1)
    spectrum = math.exp(0.25 * math.log(4) + 0.75 * math.log(4 / 3))

    assert effective_channels(torch.cat([a, b, b, b], 1)) == pytest.approx(spectrum, rel=0.002)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_a_constant_channel_does_not_count(value: float) -> None:
    alive = noise(1000, 3)

    with_it = torch.cat([alive, torch.full((1000, 1), value)], 1)

    assert effective_channels(with_it) == pytest.approx(effective_channels(alive), rel=1e-5)
    assert effective_channels(torch.full((1000, 2), value)) == 0


@pytest.mark.parametrize("channels", [2, 5, 40])
def test_it_is_the_formula_with_numpys_own_correlation(channels: int) -> None:
    pixels = noise(300, channels) @ noise(channels, channels, seed=1)
    shares = np.linalg.eigvalsh(np.corrcoef(pixels.double().numpy(), rowvar=False)) / channels

    assert effective_channels(pixels) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-3)


def test_fewer_pixels_than_channels_are_no_error() -> None:
    """The rank of what they say is less than their number."""
    assert 1 < effective_channels(noise(10, 64)) < 9


def test_that_share_is_kept_which_the_layers_have_left() -> None:
    """x -> conv(8) -> conv(12): of the first, channels 1, 4, 6 stay; the second hears less; few enough pixels that all are seen"""
    net, images = build(Chain), noise(7, 3, 16, 16)
    space = analyse(net, images[:1]).space
    kept = {group.name: tuple(range(group.channels)) for group in space.groups} | {"a.0": (1, 4, 6)}
    meter = start_channel_entropy(net, images)
    small = shrink(net, space, kept)
    with torch.no_grad():
        first, second = net.a(images), small.b(small.a(images))
    left = [effective_channels(flat(first[:, [1, 4, 6]])), effective_channels(flat(second))]
    shares = [min(1, now / meter.whole[name]) for now, name in zip(left, ("a.0", "b.0"), strict=True)]

    assert list(meter.whole) == ["a.0", "b.0"]
    assert meter.whole["a.0"] == pytest.approx(effective_channels(flat(first)), rel=1e-4)
    assert meter.kept(net) == pytest.approx(1)
    assert meter.kept(small) == pytest.approx(harmonic_mean(shares), rel=1e-4)


def flat(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (pixels, C)"""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def test_neither_killing_a_channel_nor_copying_one_is_rewarded() -> None:
    net, images = build(Chain), noise(7, 3, 16, 16)
    meter = start_channel_entropy(net, images)
    killed, copied = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        for tensor in (killed.a[1].weight, killed.a[1].bias):
            tensor[1:4] = 0
        for tensor in (copied.a[0].weight, *copied.a[1].state_dict().values()):
            if tensor.ndim:
                tensor[1:4] = tensor[4]

    assert meter.kept(killed) < 0.95
    assert meter.kept(copied) < 0.95


@pytest.mark.parametrize(("images", "size"), [(64, 32), (256, 7), (256, 49), (128, 63)])
def test_large_maps_are_sampled_and_all_columns_are_seen(images: int, size: int) -> None:
    """conv(4) on maps whose first column differs: steps of a multiple of the width would see it alone, or never"""
    net = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False)).eval()
    stripes = torch.zeros(images, 1, size, size)
    stripes[..., 1:] = 1

    assert start_channel_entropy(net, stripes).whole["0"] == pytest.approx(1, abs=1e-3)


def test_depthwise_convolutions_are_left_out_and_grouped_ones_are_not_though_they_are_cut_to_one_channel_each() -> None:
    images = noise(8, 8, 16, 16)
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8)).eval()
    grouped, cut = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4)).eval(), nn.Sequential(nn.Conv2d(8, 4, 3, groups=4)).eval()

    assert list(start_channel_entropy(depthwise, images).whole) == ["0"]
    assert 0.3 < start_channel_entropy(grouped, images).kept(cut) < 0.8


def test_the_network_is_left_as_it_was() -> None:
    net, images = build(Chain), noise(8, 3, 16, 16)
    before = copy.deepcopy(net.state_dict())
    start_channel_entropy(net, images).kept(net)

    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
