"""bfloat16: only where it gains, and never where something is promised."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.sources import load_digits
from pipeline.training import bfloat16
from pipeline.training.bfloat16 import _gains, mixed_precision
from pipeline.training.finetune import TrainingData, finetune
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification


def net() -> nn.Module:
    """conv -> BatchNorm -> relu -> conv, every second pixel -> BatchNorm -> relu -> mean -> linear"""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Tells(nn.Module):
    """A network that keeps in mind in what it last computed."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = net(), torch.float64

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.net(images)
        self.last = answer.dtype
        return answer


@pytest.fixture(scope="module")
def task() -> Classification:
    return Classification(load_digits(None, seed=0), FinetuneSettings(epochs=2, batch_size=64, learning_rate=0.05), seed=0)


def test_plans_are_scored_in_it_and_what_is_promised_is_counted_in_float32(
    task: Classification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bfloat16, "_gains", lambda device: True)
    module = Tells()
    found = {}
    for name, look in (("score", task.score), ("validate", task.validate), ("test", task.test)):
        look(module)
        found[name] = module.last

    assert found == {"score": torch.bfloat16, "validate": torch.float32, "test": torch.float32}


def test_a_score_is_that_of_float32_but_for_a_few_images(task: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(task.settings, distillation=0.0)
    monkeypatch.setattr(bfloat16, "_gains", lambda device: False)
    trained = finetune(net(), None, TrainingData(task.splits.train, task.splits.validation), settings, 0).module
    exact = task.score(trained)
    monkeypatch.setattr(bfloat16, "_gains", lambda device: True)

    assert exact > 50
    assert task.score(trained) == pytest.approx(exact, abs=2)


def test_bfloat16_is_used_where_its_trial_was_quicker_and_the_trial_leaves_no_trace() -> None:
    """What a seed draws does not depend on the machine, and the trial's one thread is for the trial."""
    _gains.cache_clear()
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with mixed_precision(torch.device("cpu")):
        answer = nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert answer.dtype == (torch.bfloat16 if _gains("cpu") else torch.float32)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_trial_can_be_made_where_gradients_are_off(
    context: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    _gains.cache_clear()
    try:
        with context():
            asked = _gains("cpu")
            assert not torch.is_grad_enabled()
    finally:
        _gains.cache_clear()

    assert asked in (True, False)


def test_a_processor_without_bfloat16_is_not_asked_to_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    _gains.cache_clear()
    try:
        assert not _gains("cpu")
    finally:
        _gains.cache_clear()


def depthwise(monkeypatch: pytest.MonkeyPatch, *, gains: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What a depthwise convolution of 5 x 5 returns while it learns, its weight and its inputs."""
    monkeypatch.setattr(bfloat16, "_gains", lambda device: True)
    monkeypatch.setattr(bfloat16, "_depthwise_gains", lambda kernel, stride: gains)
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), torch.randn(4, 8, 9, 9, requires_grad=True)
    with mixed_precision(torch.device("cpu")):
        answer = layer(inputs)
    answer.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert inputs.grad is not None
    return answer, layer.weight.grad, inputs.grad


def test_a_depthwise_layer_whose_gradients_are_slower_in_bfloat16_computes_them_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next layer still gets bfloat16. Only the layer's own outputs and the incoming gradient are rounded."""
    exact, rounded = (depthwise(monkeypatch, gains=gains) for gains in (False, True))
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), torch.randn(4, 8, 9, 9)
    true = layer(inputs)

    assert exact[0].dtype == rounded[0].dtype == torch.bfloat16
    assert torch.equal(exact[0], true.bfloat16())
    assert not torch.equal(rounded[0], true.bfloat16())
    for ours, theirs in zip(exact[1:], rounded[1:], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.5)


def test_without_gradients_a_depthwise_layer_computes_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_trial(kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
        raise AssertionError("nothing learns")

    monkeypatch.setattr(bfloat16, "_gains", lambda device: True)
    monkeypatch.setattr(bfloat16, "_depthwise_gains", no_trial)
    with torch.no_grad(), mixed_precision(torch.device("cpu")):
        assert nn.Conv2d(8, 8, 5, groups=8)(torch.randn(4, 8, 9, 9)).dtype == torch.bfloat16


def test_the_trial_of_a_depthwise_layer_answers_and_leaves_no_trace() -> None:
    bfloat16._depthwise_gains.cache_clear()
    before, threads = torch.get_rng_state(), torch.get_num_threads()

    assert bfloat16._depthwise_gains((5, 5), (2,)) in (True, False)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
