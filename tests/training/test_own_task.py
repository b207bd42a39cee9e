"""OwnTask: what is said when a function of the user's fails or returns something else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import ModelError, NetworkError
from pipeline.training.own_task import OwnTask

INPUTS = torch.rand(4, 3, 8, 8)


def broken(module: nn.Module) -> float:
    raise KeyError("boxes")


def task(**functions: Callable[[nn.Module], Any]) -> OwnTask:
    return OwnTask(INPUTS, **{"evaluate": lambda module: 1.0, "train": lambda module: module, **functions})


def finetuned(task: OwnTask) -> object:
    return task.finetune(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), 0, Path("state"), lambda done, total, text: None)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("evaluate", lambda task: task.score(nn.ReLU())),
        ("evaluate", lambda task: task.validate(nn.ReLU())),
        ("evaluate_test", lambda task: task.test(nn.ReLU())),
        ("test_each_image", lambda task: task.test(nn.ReLU())),
        ("train", finetuned),
    ],
)
def test_a_function_that_fails_is_named_with_its_line(name: str, use: Callable[[OwnTask], object]) -> None:
    with pytest.raises(
        NetworkError,
        match=rf"^OwnTask\.{name} failed: KeyError: 'boxes' \(test_own_task\.py:\d+\); it must work on networks with",
    ):
        use(task(**{name: broken}))


@pytest.mark.parametrize(
    ("function", "value", "complaint"),
    [
        ("evaluate", None, r"OwnTask\.evaluate: expected a number, got NoneType"),
        ("evaluate", torch.ones(2), r"OwnTask\.evaluate: expected a number, got Tensor"),
        ("train", None, r"OwnTask\.train: expected the trained network, got NoneType; return the module"),
    ],
)
def test_a_function_that_returns_something_else_is_named(function: str, value: object, complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        finetuned(task(**{function: lambda module: value}))


def test_a_score_may_be_a_tensor_with_one_number() -> None:
    assert task(evaluate=lambda module: torch.tensor(3.5)).validate(nn.ReLU()) == 3.5


def test_the_results_name_the_score_as_the_task_does() -> None:
    assert [
        OwnTask(INPUTS, lambda module: 1.0, lambda module: module, **name).score_name for name in ({}, {"score_name": "mIoU"})
    ] == ["accuracy", "mIoU"]


def told_by(train: Callable[..., nn.Module]) -> list[tuple[int, int, str]]:
    told: list[tuple[int, int, str]] = []
    OwnTask(INPUTS, lambda module: 1.0, train).finetune(
        nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), 0, Path("state"), lambda *each: told.append(each)
    )
    return told


def test_training_of_the_user_s_own_says_how_far_it_is_if_it_takes_progress() -> None:
    def train(module: nn.Module, progress: Callable[[int, int], None]) -> nn.Module:
        for epoch in (1, 2):
            progress(epoch, 2)
        return module

    assert told_by(train) == [
        (0, 0, "your own training"),
        (1, 2, "your own training, 1 of 2"),
        (2, 2, "your own training, 2 of 2"),
    ]


@pytest.mark.parametrize("train", [lambda module: module, nn.Identity()], ids=["function", "object"])
def test_training_of_the_user_s_own_that_takes_no_progress_says_why_no_time_is_shown(train: Callable[..., nn.Module]) -> None:
    assert told_by(train) == [(0, 0, "your own training; it reports no steps, so the time left is unknown")]
