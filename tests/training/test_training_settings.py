"""How fine-tuning goes: settings from the command line and from Python, in the run's identity, and over one's own training."""

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import pipeline.cli.main
from pipeline.core.profile import load_profile
from pipeline.errors import DataError, TrainingError
from pipeline.stages.job import Job
from pipeline.training.options_file import read_training_options
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import OwnTask

BEFORE = {
    "epochs": 20,
    "batch_size": 128,
    "learning_rate": None,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "label_smoothing": 0.1,
    "distillation": 0.7,
    "temperature": 4.0,
}
"""What a run was tied to before a batch size could be left out, where nothing was asked for."""


def identity(settings: FinetuneSettings) -> dict[str, Any]:
    job = Job(target="raspberrypi", finetuning=settings)
    found: dict[str, Any] = job.identity(load_profile("raspberrypi"), {})["finetuning"]
    return found


def test_a_run_that_was_begun_before_goes_on_where_nothing_is_asked_for() -> None:
    assert identity(FinetuneSettings()) == BEFORE
    assert identity(FinetuneSettings(batch_size=64)) == {**BEFORE, "batch_size": 64}


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.01},
        {"batch_size": 128},
        {"batch_size": 32},
        {"epochs": 0},
        {"epochs": 20},
        {"recover": "none"},
        {"minutes": 5.0},
        {"optimizer": "adamw"},
        {"schedule": "linear"},
        {"ema": 0.99},
    ],
)
def test_what_is_asked_for_makes_another_run(settings: dict[str, Any]) -> None:
    assert identity(FinetuneSettings(**settings)) != identity(FinetuneSettings())


def test_how_often_training_is_saved_makes_no_other_run() -> None:
    assert identity(FinetuneSettings(save_minutes=1.0)) == BEFORE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": -1}, "epochs: got -1"),
        ({"recover": "magic"}, "recover: got magic; choose one of auto, distil, mimic, blocks, none"),
        ({"minutes": 0.0}, "minutes of fine-tuning: got 0"),
        ({"optimizer": "adam"}, "optimizer: got adam; choose one of sgd, adamw"),
        ({"schedule": "step"}, "schedule: got step; choose one of cosine, linear, constant"),
        ({"ema": 1.0}, "ema: got 1.0; give a number from 0 to below 1"),
        ({"minutes": math.nan}, "minutes of fine-tuning: got nan"),
        ({"batch_size": 1}, "batch size: got 1"),
        ({"learning_rate": 0.0}, "learning rate: got 0"),
        ({"learning_rate": math.nan}, "learning rate: got nan"),
        ({"learning_rate": math.inf}, "learning rate: got inf"),
    ],
)
def test_settings_that_nothing_can_be_trained_with_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        FinetuneSettings(**settings)


def started(monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, list[FinetuneSettings]]:
    """Exit code, and the settings with which the walk was started; it ends there."""
    found: list[FinetuneSettings] = []

    def walk(job: Job, callback: object) -> None:
        found.append(job.finetuning)
        raise TrainingError("enough")

    monkeypatch.setattr(importlib.import_module("pipeline.compress"), "compress_budgets", walk)
    result = CliRunner().invoke(pipeline.cli.main.compress, ["--target", "raspberrypi", *flags])
    return result.exit_code, found


def test_the_command_line_sets_rate_batch_size_and_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = started(monkeypatch, "--learning-rate", "0.002", "--batch-size", "32", "--epochs", "0")

    assert found == [FinetuneSettings(epochs=0, batch_size=32, learning_rate=0.002)]


def test_a_file_sets_the_options_of_training_that_have_no_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "training.yaml").write_text("optimizer: adamw\nweight_decay: 0.05\nema: 0.999\nloader_workers: 2\n")
    _, found = started(monkeypatch, "--training", str(tmp_path / "training.yaml"), "--epochs", "3")

    assert found == [FinetuneSettings(epochs=3, optimizer="adamw", weight_decay=0.05, ema=0.999)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("momentum: 0.8\noptimiser: adamw\n", ":2: unknown key 'optimiser'. Did you mean 'optimizer'?"),
        ("ema: 1\n", ":1: ema: input should be less than 1 (got 1). Write for example 'ema: 0.999'."),
    ],
)
def test_a_mistake_in_the_file_of_training_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "training.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError) as caught:
        read_training_options(path)

    assert str(caught.value) == f"{path}{said}"


def test_the_command_line_sets_how_a_network_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = started(monkeypatch, "--recover", "blocks", "--finetune-minutes", "2.5", "--epochs", "auto")

    assert found == [FinetuneSettings(epochs=None, recover="blocks", minutes=2.5)]


@pytest.mark.parametrize(("flags", "data"), [((), "digits"), (("--unlabelled", "photos"), "none"), (("--data", "x"), "x")])
def test_only_images_without_labels_mean_that_there_are_no_labels(
    flags: tuple[str, ...], data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def walk(job: Job, callback: object) -> None:
        found.append(job.data)
        raise TrainingError("enough")

    monkeypatch.setattr(importlib.import_module("pipeline.compress"), "compress_budgets", walk)
    CliRunner().invoke(pipeline.cli.main.compress, ["--target", "raspberrypi", *flags])

    assert found == [data]


def test_images_that_nothing_can_be_done_with_are_refused_before_anything_is_loaded() -> None:
    task = OwnTask(torch.rand(2, 1, 8, 8), evaluate=lambda module: 1.0, train=lambda module: module)

    with pytest.raises(DataError, match="data: got 'none', but there are no images without labels either"):
        Job(target="local", data="none")
    with pytest.raises(DataError, match="photos: images without labels are not used with a task of your own"):
        Job(target="local", task=task, unlabelled=Path("photos"))


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (("--learning-rate", "0"), 2),
        (("--learning-rate", "-0.1"), 2),
        (("--learning-rate", "nan"), 62),
        (("--learning-rate", "inf"), 62),
        (("--batch-size", "1"), 2),
        (("--epochs", "-1"), 2),
        (("--epochs", "many"), 2),
    ],
)
def test_the_command_line_refuses_what_cannot_be_trained_with(
    flags: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(monkeypatch, *flags) == (code, [])


# one's own training


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)).eval()


def filled(value: float) -> Callable[[nn.Module], nn.Module]:
    """A training, in place, that fills the last bias."""

    def train(module: nn.Module) -> nn.Module:
        nn.init.constant_(module.get_parameter("3.bias"), value)
        return module

    return train


def bias(module: nn.Module) -> float:
    """A score: the mean of the last bias, or what is not a number."""
    return float(module.get_parameter("3.bias").detach().mean())


@pytest.mark.parametrize(("value", "epoch"), [(5.0, 1), (-5.0, 0), (math.nan, 0)])
def test_a_training_of_ones_own_that_makes_it_worse_is_not_taken(value: float, epoch: int, tmp_path: Path) -> None:
    inputs = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    student = network()
    before: Tensor = student.get_parameter("3.bias").detach().clone()
    tuned = OwnTask(inputs, evaluate=bias, train=filled(value)).finetune(
        student, network(), 0, tmp_path / "state", lambda done, total, text: None
    )

    assert tuned.epoch == epoch
    assert bool(tuned.notices) == (epoch == 0)
    assert bias(tuned.module) == max(float(before.mean()), value if epoch else -math.inf)
    assert torch.equal(student.get_parameter("3.bias"), before)
    norm = tuned.module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert not torch.equal(norm.running_mean, torch.zeros(4))  # type: ignore[arg-type]
