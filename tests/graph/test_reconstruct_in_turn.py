"""Compensation of a dropped block: the layers behind it are fitted to what they say in the dense network."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from pipeline.core.plan import Kept
from pipeline.core.restriction import Restriction
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import PrunableNetwork
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import all_channels, shrink
from pipeline.training.scoring import recalibrate

EXAMPLE = torch.zeros(1, 3, 8, 8)
INPUTS = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """x + branch(x)"""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.branch(x)
        return answer


@functools.cache
def network() -> PrunableNetwork:
    """stem -> (+ linear) -> middle -> (+ conv, batch norm) -> pool -> head: without the first block, a linear map is missing."""
    torch.manual_seed(0)
    linear, curved = Residual(nn.Conv2d(8, 8, 1)), Residual(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8))
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), linear, nn.Conv2d(8, 8, 1), nn.ReLU(), curved, nn.Conv2d(8, 8, 1))
    whole = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    whole[5].branch[2].running_mean.copy_(torch.randn(8))
    return analyse(whole, EXAMPLE, settings=PruningSettings(restriction=Restriction(depth=True)))


@functools.cache
def reconstruction() -> Reconstruction:
    return start_reconstruction(network().module, network().space, [INPUTS[:48], INPUTS[48:]])


def pruned(kept: Kept) -> tuple[nn.Module, nn.Module]:
    """The network without what is not kept; and the same, compensated."""
    plain = shrink(network().module, network().space, kept).eval()
    helped = copy.deepcopy(plain)
    reconstruction().apply(helped, kept)
    return plain, helped


def answer(module: nn.Module) -> Tensor:
    """With the statistics of the inputs, as when a network is scored."""
    scored = copy.deepcopy(module)
    recalibrate(scored, [INPUTS])
    with torch.no_grad():
        found: Tensor = scored(INPUTS)
    return found


def error(module: nn.Module) -> float:
    wanted = answer(network().module)
    return float((answer(module) - wanted).square().mean() / wanted.var(0).mean())


def test_the_layer_behind_a_dropped_block_says_what_it_said_before() -> None:
    plain, helped = pruned({**all_channels(network().space), _blocks()[0]: ()})

    assert error(plain) > 0.05
    assert error(helped) < 0.01 * error(plain)


def test_each_layer_behind_a_dropped_block_is_fitted_and_none_before_it() -> None:
    kept = {**all_channels(network().space), _blocks()[1]: ()}
    plain, helped = pruned(kept)
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, helped.state_dict()[name])}

    assert changed == {"6.weight", "6.bias", "10.weight", "10.bias"}


def test_blocks_and_channels_are_compensated_together() -> None:
    """The second half of the stem's channels says what the first half says, twice as loud."""
    space = network().space
    stem = next(group for group in space.groups if any(slot.tensor == "0.weight" for slot in group.slots))
    kept = {**all_channels(space), stem.name: tuple(range(stem.channels // 2 + 2)), _blocks()[0]: ()}
    plain, helped = pruned(kept)

    assert error(helped) < 0.5 * error(plain)


def test_neither_network_keeps_the_statistics_of_the_pictures() -> None:
    before = copy.deepcopy(network().module.state_dict())
    kept = {**all_channels(network().space), _blocks()[0]: ()}
    _, helped = pruned(kept)

    for name, tensor in network().module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(helped.get_buffer("5.branch.2.running_mean"), before["5.branch.2.running_mean"])
    assert not any(layer.training or layer._forward_pre_hooks for layer in (*helped.modules(), *network().module.modules()))


def test_dropping_the_block_that_can_be_made_up_for_costs_less() -> None:
    """The first block is linear, and so is what its next layer does; the second one is not."""
    first, second = reconstruction().block_errors().values()

    assert 0 <= first < 0.1 * second


def test_the_cost_of_a_block_is_the_difference_of_the_outputs_after_the_layers_were_fitted() -> None:
    kept = {**all_channels(network().space), _blocks()[1]: ()}
    _, helped = pruned(kept)

    assert reconstruction().block_errors()[_blocks()[1]] == pytest.approx(error(helped), rel=0.05)


@pytest.mark.parametrize("pictures", [1, 2])
def test_with_hardly_any_pictures_the_network_stays_as_it_was_cut(pictures: int) -> None:
    kept = {**all_channels(network().space), _blocks()[0]: ()}
    small = shrink(network().module, network().space, kept).eval()
    start_reconstruction(network().module, network().space, [INPUTS[:pictures]]).apply(small, kept)

    assert all(torch.isfinite(tensor).all() for tensor in small.state_dict().values())
    assert error(small) < 4 * error(shrink(network().module, network().space, kept).eval())


def _blocks() -> list[str]:
    return [block.name for block in network().space.blocks]
