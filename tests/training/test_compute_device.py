"""Compute device: everything that runs a network runs it there, and nothing mixes the memories of two devices."""

import copy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.analysed import builder_of, builder_with_blocks
from helpers.nets import EXAMPLE, Chain, Residual, build
from helpers.other_device import META, DeviceMixed, other_device
from torch import nn

from pipeline.core.compute_device import compute_device, computing_on, device_of, find_device, placed, work_factor
from pipeline.data.folder import memory_fetch
from pipeline.data.images import Splits
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import ComputeDeviceError
from pipeline.graph.channel_entropy import start_channel_entropy
from pipeline.graph.importance import rank
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.spatial_entropy import start_spatial_entropy
from pipeline.stages.sensitivity import output_distance
from pipeline.stages.supernet import Schedule, train_supernet
from pipeline.training.agreement import agreement_with
from pipeline.training.epochs import TrainingSetup, learner_of, train_epoch, validated
from pipeline.training.load import answered
from pipeline.training.scoring import accuracy, hits, recalibrate
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

PROCESSOR = torch.device("cpu")


def splits(images: int = 80) -> Splits:
    pixels = torch.randint(256, (images, *EXAMPLE.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    everything = torch.arange(images)
    return Splits.of(memory_fetch(pixels), everything % 5, (everything,) * 3, Preprocessing(), ["a"] * 5, "noise")


def task() -> Classification:
    return Classification(splits(), FinetuneSettings(epochs=1, learning_rate=0.01, recover="none"), 0)


def pixels() -> torch.Tensor:
    return torch.randn(8, *EXAMPLE.shape[1:], generator=torch.Generator().manual_seed(0))


def reconstructed(_: Path) -> object:
    builder = builder_of(Residual)
    return start_reconstruction(copy.deepcopy(builder.module), builder.space, [pixels()])


def fitted_without_a_block(_: Path) -> object:
    builder = builder_with_blocks("resnet")
    module = copy.deepcopy(builder.module)
    inputs = torch.randn(4, *builder.example.shape[1:])
    found = start_reconstruction(module, builder.space, [inputs])
    return found.block_errors()


def supernet(folder: Path) -> object:
    builder = builder_of(Chain)
    plans = iter([builder.kept(builder.space.plan({group.name: 4 for group in builder.space.groups}))] * 2)
    return train_supernet(builder.module, builder.space, Schedule(plans, 2), splits().train, folder / "net.safetensors")


def trained(_: Path) -> object:
    data = splits()
    setup = TrainingSetup.of(build(Chain), (data.train, data.validation), FinetuneSettings(batch_size=40), 40, 0)
    learner = learner_of(build(Chain), setup)
    losses = list(train_epoch(learner, setup, 0, lambda _: 0.01))
    return losses, validated(learner.module, setup)


def agreed(_: Path) -> object:
    return agreement_with(build(Chain), splits(), FinetuneSettings(), 0).score(build(Chain))


STEPS: dict[str, Callable[[Path], object]] = {
    "a score": lambda _: task().score(build(Chain)),
    "validation": lambda _: task().validate(build(Chain)),
    "the test of a torch network": lambda _: task().test(build(Chain)),
    "BatchNorm statistics": lambda _: recalibrate(build(Chain), [pixels()]),
    "reconstruction": reconstructed,
    "reconstruction without a block": fitted_without_a_block,
    "sensitivity": lambda _: output_distance(build(Chain), [torch.randn(8, 5)], [pixels()]),
    "answers as labels": lambda _: answered(build(Chain), splits()),
    "agreement": agreed,
    "Taylor importance": lambda _: rank(build(Chain), builder_of(Chain).space, "taylor", [(pixels(), torch.arange(8) % 5)]),
    "channel entropy": lambda _: start_channel_entropy(build(Chain), pixels()),
    "spatial entropy": lambda _: start_spatial_entropy(build(Chain), builder_of(Chain).space, pixels()),
    "a supernet": supernet,
    "an epoch of fine-tuning": trained,
}


@pytest.mark.parametrize("step", STEPS)
def test_every_step_runs_networks_on_the_compute_device(step: str, tmp_path: Path) -> None:
    with other_device() as there:
        STEPS[step](tmp_path)

    assert there.computed


def test_the_other_device_of_these_tests_notices_a_mix() -> None:
    with other_device(), pytest.raises(DeviceMixed, match="conv"), placed(module := build(Chain)):
        module(pixels())


def test_a_module_returns_to_its_own_device_also_after_an_error() -> None:
    module, seen = nn.Linear(2, 2), list[torch.device]()
    with suppress(KeyError), other_device(), placed(module) as device:
        seen += [device, device_of(module)]
        raise KeyError

    assert [*seen, device_of(module)] == [META, META, PROCESSOR]


def test_scores_are_the_same_bits_as_without_a_device_of_choice() -> None:
    with computing_on(PROCESSOR):
        found = hits(build(Chain), splits().test)

    assert (found == hits(build(Chain), splits().test)).all()
    assert accuracy(build(Chain), splits().test) == 100 * found.mean()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("gpu", "--device: got 'gpu'; give auto, cpu, cuda or cuda:N"),
        ("cuda:", "--device: got 'cuda:'; give auto, cpu, cuda or cuda:N"),
        ("cuda:99", "--device cuda:99: torch finds"),
    ],
)
def test_a_device_that_is_not_there_is_named(wanted: str, message: str) -> None:
    with pytest.raises(ComputeDeviceError, match=message):
        find_device(wanted)


def test_the_innermost_choice_counts() -> None:
    with computing_on(META):
        with computing_on(PROCESSOR):
            assert compute_device() == PROCESSOR
        assert compute_device() == META


def test_on_every_processor_the_same_amount_of_work_pays() -> None:
    assert work_factor(find_device("cpu")) == 1.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_scores_like_the_processor() -> None:
    with computing_on(find_device("cuda")):
        found = hits(build(Chain), splits().test)

    assert (found == hits(build(Chain), splits().test)).mean() > 0.95
