"""Fine-tuning: the loss, the schedule, the best epoch, and the same weights whether it was killed or not."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.data.images import Images, Splits
from pipeline.data.sources import load_digits
from pipeline.finetune import FinetuneSettings, _loss, _schedule, finetune
from pipeline.scoring import accuracy
from pipeline.task import Classification

SETTINGS = FinetuneSettings(epochs=4, batch_size=64, learning_rate=0.05)

on_the_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="sums in another order on a GPU have other last bits")


def tiny(seed: int = 0, width: int = 8) -> nn.Module:
    """conv -> BatchNorm -> relu -> dropout -> conv, every second pixel -> mean -> linear"""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(width, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


@pytest.fixture(scope="module")
def digits() -> Splits:
    """320 digits to train with: 5 batches make an epoch."""
    splits = load_digits(None, seed=0)
    return replace(splits, train=splits.train.sample(320, 0), validation=splits.validation.sample(100, 0))


def run(
    digits: Splits, settings: FinetuneSettings = SETTINGS, seed: int = 7, checkpoint: Path | None = None, kill_at: int = -1
) -> tuple[dict[str, Tensor], tuple[float, ...]]:
    """Weights and history of a fine-tuning that is killed when its `kill_at`-th batch is done."""

    def progress(done: int, total: int, text: str) -> None:
        if done == kill_at:
            raise KeyboardInterrupt

    tuned = finetune(tiny(), tiny(1), digits.train, digits.validation, settings, seed, checkpoint, progress)
    return tuned.module.state_dict(), tuned.accuracies


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# killed and resumed


@on_the_cpu
@pytest.mark.parametrize(
    "kills",
    [(3,), (5,), (6,), (12,), (20,), (7, 13)],
    ids=["in the first epoch", "before the first save", "after it", "in the middle", "at the very end", "twice"],
)
def test_killed_and_resumed_equals_never_killed(digits: Splits, tmp_path: Path, kills: tuple[int, ...]) -> None:
    """4 epochs of 5 batches; bit by bit the same weights, momenta and dropout included."""
    never, history = run(digits)
    for batch in kills:
        with pytest.raises(KeyboardInterrupt):
            run(digits, checkpoint=tmp_path / "state", kill_at=batch)
    resumed, resumed_history = run(digits, checkpoint=tmp_path / "state")

    assert resumed_history == history
    assert equal(resumed, never)


def test_a_resumed_training_does_only_what_is_left(digits: Splits, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(digits, checkpoint=tmp_path / "state", kill_at=12)
    batches: list[int] = []
    finetune(
        tiny(),
        tiny(1),
        digits.train,
        digits.validation,
        SETTINGS,
        7,
        tmp_path / "state",
        lambda done, total, text: batches.append(done),
    )

    assert batches == list(range(11, 21))


@on_the_cpu
@pytest.mark.parametrize(
    ("settings", "seed"),
    [
        (replace(SETTINGS, epochs=5), 7),
        (replace(SETTINGS, learning_rate=0.04), 7),
        (replace(SETTINGS, distillation=0.5), 7),
        (SETTINGS, 8),
    ],
    ids=["epochs", "learning rate", "distillation", "seed"],
)
def test_a_checkpoint_of_another_training_is_ignored(
    digits: Splits, tmp_path: Path, settings: FinetuneSettings, seed: int
) -> None:
    run(digits, checkpoint=tmp_path / "state")
    found, history = run(digits, settings, seed, tmp_path / "state")
    alone, history_alone = run(digits, settings, seed)

    assert history == history_alone
    assert equal(found, alone)


def test_a_checkpoint_of_another_width_is_ignored(digits: Splits, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    run(digits, settings, checkpoint=tmp_path / "state")
    network = finetune(tiny(width=6), None, digits.train, digits.validation, settings, 7, tmp_path / "state").module

    assert network.get_submodule("0").out_channels == 6


def test_a_layer_under_two_names_is_kept_in_a_checkpoint(digits: Splits, tmp_path: Path) -> None:
    """The same BatchNorm, twice in the network: one memory, two names in the state dict."""
    norm = nn.BatchNorm2d(1)
    settings = replace(SETTINGS, epochs=2)
    alone, kept = (
        finetune(nn.Sequential(norm, norm, tiny()), None, digits.train, digits.validation, settings, 7, checkpoint).module
        for checkpoint in (None, tmp_path / "state")
    )

    assert (tmp_path / "state").is_file()
    assert {"0.weight", "1.weight"} <= kept.state_dict().keys()
    assert equal(kept.state_dict(), alone.state_dict())


# the rate


UNNAMED = replace(SETTINGS, epochs=8, batch_size=8, learning_rate=None)
"""A tenth of 8 epochs of 320 images are 32 batches: enough to try rates."""


def rates_tried(digits: Splits, settings: FinetuneSettings) -> tuple[set[str], set[str]]:
    """What the progress says: the rates that are tried, and the rate of the training itself."""
    tried, taken = set[str](), set[str]()

    def progress(done: int, total: int, text: str) -> None:
        found = re.match(r"trying rate ([^ ,]+)", text)
        if found:
            tried.add(found[1])
        else:
            taken.update(re.findall(r"rate ([^ ,]+)", text))

    finetune(tiny(), None, digits.train, digits.validation, settings, 7, None, progress)
    return tried, taken


def test_the_bar_and_the_time_left_are_of_the_whole_training_while_rates_are_tried(digits: Splits) -> None:
    told: list[tuple[int, int, str]] = []
    finetune(tiny(), None, digits.train, digits.validation, UNNAMED, 7, None, lambda *each: told.append(each))
    trying = [each for each in told if "trying" in each[2]]

    assert {total for _, total, _ in told} == {UNNAMED.epochs * 40}
    assert {done for done, _, _ in trying} == {0}
    assert all(re.search(r", \d+ s left$", text) for _, _, text in told)
    assert [text.split(",")[1] for _, _, text in trying][:: len(trying) // 4] == [" 1 of 4", " 2 of 4", " 3 of 4", " 4 of 4"]


def test_a_rate_that_ruins_the_network_is_tried_and_not_taken(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.finetune.RATES", (500.0, 0.05))

    assert rates_tried(digits, UNNAMED) == ({"500", "0.05"}, {"0.05"})


def test_a_rate_that_brings_nothing_back_is_tried_and_not_taken(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.finetune.RATES", (1e-9, 0.2))

    assert rates_tried(digits, UNNAMED) == ({"1e-09", "0.2"}, {"0.2"})


def test_of_two_rates_that_end_alike_the_higher_is_taken(digits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.finetune.RATES", (2e-9, 1e-9))

    assert rates_tried(digits, UNNAMED) == ({"2e-09", "1e-09"}, {"2e-09"})


def test_a_rate_that_is_named_is_taken_as_it_is(digits: Splits) -> None:
    assert rates_tried(digits, replace(UNNAMED, learning_rate=0.03)) == (set(), {"0.03"})


def test_a_training_too_short_to_try_rates_takes_the_highest(digits: Splits) -> None:
    assert rates_tried(digits, replace(UNNAMED, epochs=7)) == (set(), {"0.05"})


@on_the_cpu
def test_the_rate_that_was_chosen_is_kept_when_training_is_resumed(
    digits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.finetune.RATES", (500.0, 0.05))
    never, history = run(digits, UNNAMED)
    with pytest.raises(KeyboardInterrupt):
        run(digits, UNNAMED, checkpoint=tmp_path / "state", kill_at=60)
    texts: list[str] = []
    resumed = finetune(
        tiny(),
        tiny(1),
        digits.train,
        digits.validation,
        UNNAMED,
        7,
        tmp_path / "state",
        lambda done, total, text: texts.append(text),
    )

    assert not any("trying" in text for text in texts)
    assert resumed.learning_rate == 0.05
    assert resumed.accuracies == history
    assert equal(resumed.module.state_dict(), never)


# what is learned, and from what


LONGER = replace(SETTINGS, epochs=8, batch_size=32, learning_rate=0.2)


def test_a_tiny_network_learns_the_digits() -> None:
    digits = load_digits(None, seed=0)
    tuned = finetune(tiny(), None, digits.train, digits.validation, LONGER, seed=0)

    assert accuracy(tiny(), digits.test) < 30
    assert accuracy(tuned.module, digits.test) > 80
    assert len(tuned.accuracies) == 8
    assert tuned.learning_rate == 0.2


def test_a_teacher_alone_teaches() -> None:
    """All labels are wrong, and count for nothing: the student follows the teacher, who knows."""
    digits = load_digits(None, seed=0)
    teacher = finetune(tiny(1), None, digits.train, digits.validation, LONGER, seed=0).module
    wrong = replace(digits.train, labels=(digits.train.labels + 1) % 10)
    student = finetune(tiny(), teacher, wrong, digits.validation, replace(LONGER, distillation=1.0), seed=0).module

    assert accuracy(student, digits.test) > 70


def test_the_best_validation_epoch_is_returned_and_not_the_last(digits: Splits) -> None:
    """Validation labels are wrong on purpose, so that every step makes it worse."""
    wrong = replace(digits.validation, labels=(digits.validation.labels + 1) % 10)
    tuned = finetune(tiny(), None, digits.train, wrong, replace(SETTINGS, epochs=6, learning_rate=0.2), seed=0)

    assert max(tuned.accuracies) > tuned.accuracies[-1]
    assert accuracy(tuned.module, wrong) == max(tuned.accuracies)


def test_student_and_teacher_are_left_as_they_were(digits: Splits) -> None:
    student, teacher = tiny(), tiny(1)
    before = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    found = finetune(student, teacher, digits.train, digits.validation, replace(SETTINGS, epochs=1), seed=0).module

    assert equal(student.state_dict(), before[0])
    assert equal(teacher.state_dict(), before[1])
    assert not equal(found.state_dict(), before[0])
    assert not any(module.training for module in found.modules())


def test_the_test_images_are_never_touched_before_the_end(digits: Splits, tmp_path: Path) -> None:
    """Splits whose test images cannot be fetched: everything but the final test works."""

    def sealed(indices: Tensor) -> Tensor:
        raise AssertionError("the test images were looked at")

    task = Classification(replace(digits, test=replace(digits.test, fetch=sealed)), replace(SETTINGS, epochs=1), seed=0)
    network = task.finetune(tiny(), tiny(1), 0, tmp_path / "state", lambda done, total, text: None).module

    assert task.example().shape == (1, 1, 8, 8)
    assert len(task.inputs(12)) == 12
    assert sum(len(labels) for _, labels in task.calibration()) == 320
    assert 0 <= task.score(network) <= 100
    assert 0 <= task.validate(network) <= 100
    with pytest.raises(AssertionError, match="the test images were looked at"):
        task.test(network)


# formulas


class Fixed(nn.Module):
    """The same logits, whatever the image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize(("smoothing", "share", "temperature"), [(0.0, 0.0, 1.0), (0.1, 0.7, 4.0), (0.2, 1.0, 2.0)])
@pytest.mark.parametrize("taught", [True, False])
def test_the_loss_is_its_formula(smoothing: float, share: float, temperature: float, taught: bool) -> None:
    """(1 - a) CE + a T^2 KL(teacher || student), image by image, class by class."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, labels = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator), [0, 3, 1]
    settings = FinetuneSettings(label_smoothing=smoothing, distillation=share, temperature=temperature)
    hard = soft = 0.0
    for said, taught_said, label in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        wanted = [smoothing / 4 + (1 - smoothing) * (number == label) for number in range(4)]
        hard -= sum(w * math.log(p) for w, p in zip(wanted, softmax(said), strict=True)) / 3
        pairs = zip(softmax(taught_said, temperature), softmax(said, temperature), strict=True)
        soft += sum(t * math.log(t / s) for t, s in pairs) / 3
    found = _loss(Fixed(student), Fixed(teacher) if taught else None, torch.zeros(3, 1), torch.tensor(labels), settings)

    expected = (1 - share) * hard + share * temperature**2 * soft if taught else hard
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epochs", [2, 5, 20])
def test_the_learning_rate_rises_for_one_epoch_and_falls_to_zero_along_a_cosine(epochs: int) -> None:
    rates = [_schedule(step / 100, epochs) for step in range(100 * epochs + 1)]

    assert rates[0] == 0.01
    assert rates[50] == 0.5
    assert rates[100] == max(rates) == 1.0
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert _schedule((1 + epochs) / 2, epochs) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0)


def test_a_single_epoch_has_its_peak_in_the_middle() -> None:
    assert [round(_schedule(step / 4, 1), 2) for step in range(5)] == [0.01, 0.5, 1.0, 0.5, 0.0]


def test_a_last_batch_of_one_image_is_left_out(digits: Splits) -> None:
    """65 images in batches of 64: BatchNorm cannot learn from the last one."""
    train = Images(digits.train.fetch, digits.train.labels, digits.train.indices[:65], digits.train.preprocessing)
    seen: list[tuple[int, int]] = []
    finetune(
        tiny(),
        None,
        train,
        digits.validation,
        replace(SETTINGS, epochs=2),
        0,
        None,
        lambda done, total, text: seen.append((done, total)),
    )

    assert seen == [(1, 4), (3, 4)]
