"""Which widths are fast: from sweeps with a known answer, from the cost model, and never offered when dominated."""

from functools import cache
from pathlib import Path

import pytest
import torch
from helpers.analysed import space_of
from helpers.graphs import profile, reference
from helpers.nets import ZOO
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.alignment import Alignment, ConvPair, Sweep
from pipeline.core.opsets import FileFormat
from pipeline.core.profile import Profile
from pipeline.core.progress import NullCallback
from pipeline.graph.analyse import analyse
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.probe.simulated import LANES, SimulatedProbe
from pipeline.stages.search_space import search_space
from pipeline.stages.width_sweep import conv_pairs, find_alignment

PAIR = ConvPair("conv", 8, 64, 8, (3, 3), (1, 1), (16, 16))
WIDTHS = range(16, 49, 4)


def sweep(cost: dict[int, float]) -> Sweep:
    return Sweep(PAIR, {width: (ms, 1.01 * ms) for width, ms in cost.items()})


@pytest.mark.parametrize("lanes", [4, 8, 16, 32])
def test_the_step_is_the_width_of_the_device_s_vectors(lanes: int) -> None:
    """a device on which a vector that is not full costs as much as a full one"""
    found = Alignment((sweep({width: -(-width // lanes) * lanes for width in WIDTHS}),))

    assert found.step == lanes
    assert found.dominated(64) == {width for width in WIDTHS if width % lanes and width < 48}


def test_a_device_that_takes_what_is_asked_for_has_the_finest_step() -> None:
    found = Alignment((sweep({width: width for width in WIDTHS}),))

    assert found.step == 4
    assert not found.dominated(64)


def test_a_width_slower_than_a_wider_one_is_dominated_wherever_it_lies() -> None:
    """a cliff at one width, as runtimes have for sizes nobody tuned"""
    found = Alignment((sweep({width: 100.0 if width == 28 else width for width in WIDTHS}),))

    assert found.dominated(64) == {28}
    assert found.dominated(128) == frozenset()


def test_without_sweeps_nothing_is_known() -> None:
    assert Alignment(()).step == 4


@given(st.dictionaries(st.integers(1, 64).map(lambda n: 4 * n), st.floats(0.1, 100), min_size=1, max_size=12))
def test_the_widest_is_never_dominated_and_the_step_is_one_of_four(cost: dict[int, float]) -> None:
    found = Alignment((sweep(cost),))

    assert max(cost) not in found.sweeps[0].dominated
    assert found.step in (4, 8, 16, 32)


# ---------------------------------------------------------------- found on a probe


@cache
def chain() -> PrunedModelBuilder:
    """Three convolutions."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(64, 5, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
    )
    example = torch.randn(1, 3, 16, 16)
    return PrunedModelBuilder(analyse(net, example), {}, example, 18, 9, "", "")


def found_in(folder: Path, target: Profile | None = None) -> Alignment:
    """What the cost model's device is found to be good at."""
    probe = SimulatedProbe(target or profile(), reference())
    kept = folder / "run" / "alignment.json"
    kept.parent.mkdir(exist_ok=True)
    return find_alignment(probe, chain(), kept, folder / "cache", 0, NullCallback())


def test_a_sweep_finds_the_vectors_of_the_cost_model(tmp_path: Path) -> None:
    found = found_in(tmp_path)

    assert found.step == LANES
    assert [sweep.pair.channels for sweep in found.sweeps] == [64, 64]


def test_it_is_measured_once_for_a_device_and_once_for_a_run(tmp_path: Path) -> None:
    """what is kept is believed, even if it says something else"""
    found = found_in(tmp_path)
    (cached,) = (tmp_path / "cache").iterdir()
    kept = tmp_path / "run" / "alignment.json"

    assert cached.read_bytes() == kept.read_bytes()
    cached.write_text("torn")
    assert found_in(tmp_path) == found
    kept.write_text("torn")
    assert found_in(tmp_path) == found


def test_another_device_s_is_not_taken(tmp_path: Path) -> None:
    found_in(tmp_path)
    (tmp_path / "run" / "alignment.json").unlink()
    other = profile().device.model_copy(update={"name": "another"})
    found_in(tmp_path, profile().model_copy(update={"device": other}))

    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_search_is_never_offered_a_dominated_width(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 48, 3), torch.nn.Flatten(), torch.nn.Linear(48 * 16, 5)
    )
    builder = start_builder(net.eval(), torch.randn(1, 3, 8, 8), FileFormat(18, 9), PruningSettings(), tmp_path / "dense.onnx")
    found = Alignment((sweep({width: 100.0 if width == 32 else width for width in WIDTHS}),))
    space = search_space(builder, found.step, found)
    offered = {choice.channels: choice.widths for choice in space.choices}

    assert 32 not in offered[64]
    assert {28, 36, 64} <= set(offered[64])
    assert 32 in offered[48]


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_s_pairs_are_its_own(name: str) -> None:
    """channels and kernels as its layers have them, or none where no convolution feeds another"""
    torch.manual_seed(0)
    net = ZOO[name]().eval()
    example = torch.randn(1, 3, 16, 16)
    layers = dict(net.named_modules())
    for pair in conv_pairs(net, space_of(ZOO[name]), example):
        first = layers[pair.name]
        assert (pair.in_channels, pair.channels) == (first.in_channels, first.out_channels)
        assert pair.kernels[0] == first.kernel_size[0]
