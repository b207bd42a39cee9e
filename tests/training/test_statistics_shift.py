"""Statistics shift: estimates from few pictures are corrected by the dense network's own statistics."""

import copy

import torch
from torch import Tensor, nn

from pipeline.core.plan import Kept
from pipeline.graph.analyse import analyse
from pipeline.graph.shrink import all_channels, shrink
from pipeline.training.scoring import measure_shifts, recalibrate
from pipeline.training.statistics_shift import StatisticsShift, kept_shifts, set_shifts, shifts_of


def trained() -> nn.Module:
    """conv(12) -> BatchNorm -> relu -> conv(6) -> BatchNorm -> linear(4), with statistics of 4,000 pictures"""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3),
        nn.BatchNorm2d(6, affine=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    recalibrate(network, pictures(4000, seed=1).split(500))
    return network.eval()


def pictures(count: int, seed: int) -> Tensor:
    """Pictures whose brightness differs, so that a few of them are brighter or darker than all."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator) + 2 * torch.randn(count, 1, 1, 1, generator=generator)


def pruned(network: nn.Module, kept: Kept, batches: list[Tensor], *, corrected: bool) -> nn.Module:
    space = analyse(network, pictures(1, seed=0)).space
    small = shrink(network, space, {**all_channels(space), **kept}).eval()
    if corrected:
        set_shifts(small, kept_shifts(measure_shifts(network, batches), space, {**all_channels(space), **kept}))
    recalibrate(small, batches)
    return small


def test_the_dense_network_keeps_its_own_statistics_whatever_pictures_they_are_estimated_from() -> None:
    network, few = trained(), [pictures(6, seed=2), pictures(2, seed=3)]
    estimated, corrected = (pruned(network, {}, few, corrected=each) for each in (False, True))

    for name, own in network.named_buffers():
        if name.endswith(("mean", "var")):
            torch.testing.assert_close(corrected.get_buffer(name), own, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(estimated.get_buffer("1.running_mean"), network.get_buffer("1.running_mean"), atol=0.01)


def test_the_statistics_of_a_pruned_network_are_closer_to_those_of_many_pictures() -> None:
    network, kept = trained(), {"0": (0, 1, 2, 3, 5, 6, 7, 8, 9, 11)}
    many = pruned(network, kept, list(pictures(4000, seed=1).split(500)), corrected=False)
    distances = []
    for corrected in (False, True):
        total = 0.0
        for seed in range(5):
            few = pruned(network, kept, [pictures(8, seed=10 + seed)], corrected=corrected)
            total += float((few.get_buffer("4.running_mean") - many.get_buffer("4.running_mean")).square().mean())
        distances.append(total)

    assert distances[1] < 0.5 * distances[0]


def test_copies_of_a_network_keep_its_shifts_and_its_state_does_not_hold_them() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    names = set(network.state_dict())
    set_shifts(network, {"0": StatisticsShift(torch.ones(3), torch.full((3,), 2.0))})
    other = copy.deepcopy(network)
    recalibrate(other, [pictures(50, seed=4)])
    plain = nn.Sequential(nn.BatchNorm2d(3))
    recalibrate(plain, [pictures(50, seed=4)])

    assert set(other.state_dict()) == names
    assert set(shifts_of(other)) == {"0"}
    torch.testing.assert_close(other[0].running_var, 2 * plain[0].running_var)
    torch.testing.assert_close(other[0].running_mean, plain[0].running_mean + plain[0].running_var.sqrt())


def test_a_channel_that_is_silent_in_the_pictures_keeps_finite_statistics() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    shifts = measure_shifts(network, [torch.zeros(4, 2, 3, 3)])
    set_shifts(network, shifts)
    recalibrate(network, [torch.randn(4, 2, 3, 3)])

    assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())
