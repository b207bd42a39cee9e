"""Optimizers, schedules and averages of weights: their formulas, and training that is killed within an epoch."""

import copy
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pipeline.core.progress import no_progress
from pipeline.data.images import Splits
from pipeline.data.sources import load_digits
from pipeline.training.epochs import TrainingSetup, learner_of, schedule, train_epoch
from pipeline.training.finetune import Finetuned, Tracking, TrainingData, finetune
from pipeline.training.optimizers import optimizer_of
from pipeline.training.settings import FinetuneSettings
from pipeline.training.threads import compute_threads

SETTINGS = FinetuneSettings(epochs=3, batch_size=32, learning_rate=0.02, save_minutes=0, distillation=0)
OTHERS = replace(SETTINGS, optimizer="adamw", learning_rate=0.005, ema=0.9, schedule="linear", weight_decay=0.05)

on_the_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="sums in another order on a GPU have other last bits")


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(256, 10)
    return nn.Sequential(*layers).eval()


def some_digits() -> Splits:
    """128 digits to train with: 4 batches make an epoch."""
    splits = load_digits(None, seed=0)
    return replace(splits, train=splits.train.sample(128, 0), validation=splits.validation.sample(50, 0))


@pytest.fixture(scope="module")
def digits() -> Splits:
    return some_digits()


def tuned(
    digits: Splits, settings: FinetuneSettings, checkpoint: Path | None, progress: Callable[[int, int, str], None] = no_progress
) -> Finetuned:
    with compute_threads(1):  # the same sums in every process
        data = TrainingData(digits.train, digits.validation)
        return finetune(net(), None, data, settings, 7, Tracking(checkpoint, progress))


def train_until_killed(settings: FinetuneSettings, checkpoint: Path, step: int) -> None:
    """Train, and end this process after `step` steps."""

    def progress(done: int, total: int, text: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    tuned(some_digits(), settings, checkpoint, progress)


@on_the_cpu
@pytest.mark.parametrize(
    "settings",
    [pytest.param(SETTINGS, id="SGD"), pytest.param(OTHERS, id="AdamW with an average of the weights", marks=pytest.mark.slow)],
)
def test_training_killed_within_an_epoch_ends_with_the_weights_of_one_that_was_not(
    digits: Splits, tmp_path: Path, settings: FinetuneSettings
) -> None:
    """3 epochs of 4 steps; the network has dropout. It is killed in the second epoch."""
    steps: list[int] = []
    # not forked: torch does not train in a fork of a process whose own training has started threads
    process = get_context("spawn").Process(target=train_until_killed, args=(settings, tmp_path / "state", 6))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    resumed = tuned(digits, settings, tmp_path / "state", lambda done, total, text: steps.append(done))
    never = tuned(digits, settings, None)

    assert steps == [7, 8, 9, 10, 11, 12]
    assert resumed.accuracies == never.accuracies
    found, expected = resumed.module.state_dict(), never.module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@on_the_cpu
def test_a_checkpoint_of_a_version_that_saved_after_epochs_only_is_resumed(digits: Splits, tmp_path: Path) -> None:
    settings = replace(SETTINGS, save_minutes=10.0)

    def progress(done: int, total: int, text: str) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(digits, settings, tmp_path / "state", progress)
    with safe_open(tmp_path / "state", "pt") as file:
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("random/")}  # noqa: SIM118
    state = json.loads(notes["state"])
    assert state.pop("losses") == []
    save_file(tensors, tmp_path / "older", {**notes, "state": json.dumps(state)})
    steps: list[int] = []
    resumed = tuned(digits, settings, tmp_path / "older", lambda done, total, text: steps.append(done))

    assert steps == [5, 6, 7, 8, 9, 10, 11, 12]
    assert resumed.accuracies == tuned(digits, settings, None).accuracies


def test_the_average_of_the_weights_is_its_formula_and_is_what_is_validated(digits: Splits) -> None:
    settings = replace(OTHERS, optimizer="sgd")
    setup = TrainingSetup.of(None, (digits.train, digits.validation), settings, 32, 0)
    learner = learner_of(net(), setup)
    expected = None
    for _ in train_epoch(learner, setup, 0, lambda step: 0.05):
        weights = learner.module[0].weight.detach().clone()  # type: ignore[index, union-attr]
        expected = weights if expected is None else 0.9 * expected + 0.1 * weights

    torch.testing.assert_close(learner.judged[0].weight, expected)  # type: ignore[index]
    assert not torch.equal(learner.judged[0].weight, weights)  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings", "decayed"),
    [
        (FinetuneSettings(), {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"}),
        (FinetuneSettings(decay="weights"), {"0.weight", "5.weight"}),
        (FinetuneSettings(optimizer="adamw"), {"0.weight", "5.weight"}),
        (FinetuneSettings(optimizer="adamw", decay="all"), {"0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"}),
    ],
    ids=["SGD", "SGD, weights", "AdamW", "AdamW, all"],
)
def test_which_parameters_decay(settings: FinetuneSettings, decayed: set[str]) -> None:
    """Where the gradient is zero, only decay changes a parameter."""
    module = net()
    for parameter in module.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(module.state_dict())
    optimizer = optimizer_of(module, settings)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()

    assert {name for name, each in module.named_parameters() if not torch.equal(each, before[name])} == decayed


def test_a_norm_with_weights_of_two_axes_does_not_decay() -> None:
    module = nn.Sequential(nn.LayerNorm((4, 4)), nn.Linear(4, 4, bias=False))
    groups = optimizer_of(module, FinetuneSettings(optimizer="adamw")).param_groups

    assert [[tuple(each.shape) for each in group["params"]] for group in groups] == [[(4, 4)], [(4, 4), (4, 4)]]
    assert groups[0]["params"][0] is module[1].weight


def test_schedules_fall_as_they_are_called() -> None:
    shares = {
        "linear": [schedule(epoch, 5, "linear") for epoch in (0.5, 1, 2, 3, 5)],
        "constant": [schedule(epoch, 5, "constant", 2) for epoch in (1, 2, 3, 5)],
        "without warm-up": [schedule(epoch, 4, "linear", 0) for epoch in (0, 1, 4)],
    }

    assert shares == {"linear": [0.5, 1, 0.75, 0.5, 0], "constant": [0.5, 1, 1, 1], "without warm-up": [1, 0.75, 0]}


def test_adamw_tries_a_tenth_of_the_rates(digits: Splits) -> None:
    found: set[str] = set()
    settings = replace(SETTINGS, optimizer="adamw", learning_rate=None, epochs=1)
    tuned(digits, settings, None, lambda done, total, text: found.add(text.partition(",")[0]))

    assert "trying learning rate 0.005" in found
    assert not any("0.05" in text for text in found)
