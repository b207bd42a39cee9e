"""Fine-tuning: the loss, the schedule, the best epoch, and the same weights whether it was killed or not."""

import copy
import itertools
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.data.images import Images, Splits
from pipeline.data.sources import load_digits
from pipeline.errors import TrainingDiverged
from pipeline.training.epochs import TrainingSetup, Validation, learner_of, schedule, train_epoch, training_loss
from pipeline.training.finetune import Finetuned, Tracking, TrainingData, finetune
from pipeline.training.learning_rates import RATES
from pipeline.training.scoring import accuracy, hits, recalibrate
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

SETTINGS = FinetuneSettings(epochs=4, batch_size=64, learning_rate=0.05)
LONGER = replace(SETTINGS, epochs=8, batch_size=32, learning_rate=0.2)

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

    tuned = finetune(
        tiny(), tiny(1), TrainingData(digits.train, digits.validation), settings, seed, Tracking(checkpoint, progress)
    )
    return tuned.module.state_dict(), tuned.accuracies


@pytest.fixture(scope="module")
def never_killed(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], tuple[float, ...], Path]:
    """Weights and history of a training that was not killed, and its checkpoint."""
    checkpoint = tmp_path_factory.mktemp("never-killed") / "state"
    return *run(digits, checkpoint=checkpoint), checkpoint


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# killed and resumed


@on_the_cpu
@pytest.mark.parametrize(
    "kills",
    [(3,), (5,), (6,), (12,), (20,), (7, 13)],
    ids=["in the first epoch", "before the first save", "after it", "in the middle", "at the very end", "twice"],
)
def test_killed_and_resumed_equals_never_killed(
    digits: Splits, tmp_path: Path, never_killed: tuple[dict[str, Tensor], tuple[float, ...], Path], kills: tuple[int, ...]
) -> None:
    """4 epochs of 5 batches; bit by bit the same weights, momenta and dropout included."""
    never, history, _ = never_killed
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
        TrainingData(digits.train, digits.validation),
        SETTINGS,
        7,
        Tracking(tmp_path / "state", lambda done, total, text: batches.append(done)),
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
    digits: Splits,
    tmp_path: Path,
    never_killed: tuple[dict[str, Tensor], tuple[float, ...], Path],
    settings: FinetuneSettings,
    seed: int,
) -> None:
    shutil.copy(never_killed[2], tmp_path / "state")
    found, history = run(digits, settings, seed, tmp_path / "state")
    alone, history_alone = run(digits, settings, seed)

    assert history == history_alone
    assert equal(found, alone)


def test_a_checkpoint_of_another_width_is_ignored(digits: Splits, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1)
    run(digits, settings, checkpoint=tmp_path / "state")
    network = finetune(
        tiny(width=6), None, TrainingData(digits.train, digits.validation), settings, 7, Tracking(tmp_path / "state")
    ).module

    assert network.get_submodule("0").out_channels == 6


def test_a_layer_under_two_names_is_kept_in_a_checkpoint(digits: Splits, tmp_path: Path) -> None:
    """The same BatchNorm, twice in the network: one memory, two names in the state dict."""
    norm = nn.BatchNorm2d(1)
    settings = replace(SETTINGS, epochs=2)
    alone, kept = (
        finetune(
            nn.Sequential(norm, norm, tiny()),
            None,
            TrainingData(digits.train, digits.validation),
            settings,
            7,
            Tracking(checkpoint),
        ).module
        for checkpoint in (None, tmp_path / "state")
    )

    assert (tmp_path / "state").is_file()
    assert {"0.weight", "1.weight"} <= kept.state_dict().keys()
    assert equal(kept.state_dict(), alone.state_dict())


# the rate


UNNAMED = replace(SETTINGS, batch_size=16, learning_rate=None)
"""4 epochs of 20 steps."""


def rates_tried(digits: Splits, settings: FinetuneSettings) -> tuple[list[str], set[str]]:
    """What the progress says: the rates that are tried, in order, and the rate of the training itself."""
    tried, taken = dict[str, None](), set[str]()

    def progress(done: int, total: int, text: str) -> None:
        found = re.match(r"trying learning rate ([^ ,]+)", text)
        if found:
            tried[found[1]] = None
        else:
            taken.update(re.findall(r"rate ([^ ,]+)", text))

    finetune(tiny(), None, TrainingData(digits.train, digits.validation), settings, 7, Tracking(None, progress))
    return list(tried), taken


def test_progress_is_of_the_whole_training_also_while_rates_are_tried(digits: Splits) -> None:
    told: list[tuple[int, int, str]] = []
    finetune(
        tiny(), None, TrainingData(digits.train, digits.validation), UNNAMED, 7, Tracking(None, lambda *each: told.append(each))
    )
    trying = [each for each in told if "trying" in each[2]]

    steps = UNNAMED.epochs * 20
    assert {total for _, total, _ in told} == {9 * 16 + steps}
    assert [done for done, _, _ in told] == sorted({done for done, _, _ in told})
    assert told[-1][0] == told[-1][1]
    assert trying[0] == (1, 9 * 16 + steps, "trying learning rate 0.05, 1 of at most 9")
    assert trying[16] == (17, 9 * 16 + steps, "trying learning rate 0.02, 2 of at most 9")


@pytest.mark.parametrize("images", [2, 320, pytest.param(17, marks=pytest.mark.slow)])
def test_rates_are_tried_with_any_number_of_images(digits: Splits, images: int) -> None:
    few = replace(digits, train=digits.train.sample(images, 0))
    tried, taken = rates_tried(few, replace(UNNAMED, epochs=1, batch_size=None))

    assert tried[:2] == ["0.05", "0.02"]
    assert len(taken) == 1
    assert taken <= set(tried)


def test_a_rate_that_is_named_is_taken_as_it_is(digits: Splits) -> None:
    assert rates_tried(digits, replace(UNNAMED, learning_rate=0.03)) == ([], {"0.03"})


@on_the_cpu
def test_the_rate_that_was_chosen_is_kept_when_training_is_resumed(digits: Splits, tmp_path: Path) -> None:
    """It is killed in its first epoch."""
    never, history = run(digits, UNNAMED)

    def kill(done: int, total: int, text: str) -> None:
        if done == 9 * 16 + 7:
            raise KeyboardInterrupt

    arguments = (tiny(), tiny(1), TrainingData(digits.train, digits.validation), UNNAMED, 7)
    with pytest.raises(KeyboardInterrupt):
        finetune(*arguments, Tracking(tmp_path / "state", kill))
    texts: list[str] = []
    resumed = finetune(*arguments, Tracking(tmp_path / "state", lambda done, total, text: texts.append(text)))

    assert not any("trying" in text for text in texts)
    assert resumed.learning_rate in RATES
    assert resumed.accuracies == history
    assert equal(resumed.module.state_dict(), never)


# the network as it was scored is epoch 0


@pytest.fixture(scope="module")
def still(digits: Splits) -> Splits:
    """They are not augmented."""
    return digits.with_preprocessing(digits.train.preprocessing.model_copy(update={"augment": ()}))


def as_scored(student: nn.Module, digits: Splits, seed: int) -> dict[str, Tensor]:
    """The weights, and the BatchNorm statistics of 1,024 training images at most."""
    module = copy.deepcopy(student).to(memory_format=torch.channels_last)
    recalibrate(module, (pixels for pixels, _ in digits.train.sample(1024, seed).batches(256)))
    return module.state_dict()


@pytest.fixture(scope="module")
def able(digits: Splits) -> nn.Module:
    """A network that has learned, with BatchNorm statistics that are not its own."""
    network = finetune(tiny(), None, TrainingData(digits.train, digits.validation), LONGER, 0).module
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
    return network


def test_training_that_makes_it_worse_leaves_the_network_as_it_was_scored(still: Splits, able: nn.Module) -> None:
    """All training labels are wrong."""
    wrong = replace(still.train, labels=(still.train.labels + 1) % 10)
    tuned = finetune(able, None, TrainingData(wrong, still.validation), replace(SETTINGS, learning_rate=0.2), 7)

    assert tuned.start is not None
    assert tuned.start > 60 > max(tuned.accuracies)
    assert tuned.epoch == 0
    assert equal(tuned.module.state_dict(), as_scored(able, still, seed=7))
    assert accuracy(tuned.module, still.validation) == tuned.start
    assert [notice.partition(":")[0] for notice in tuned.notices] == ["fine-tuning did not improve the network"]


def validation_loss(module: nn.Module, images: Images) -> float:
    """The loss of training without a teacher, image by image."""
    with torch.no_grad():
        losses = [float(training_loss(module(pixels), None, labels, SETTINGS)) for pixels, labels in images.batches(1)]
    return sum(losses) / len(losses)


def test_of_epochs_with_equal_accuracy_the_one_with_the_lowest_loss_is_taken(still: Splits, able: nn.Module) -> None:
    """The network answers all validation images rightly, before and after each epoch of training."""
    start = copy.deepcopy(able)
    start.load_state_dict(as_scored(able, still, seed=7))
    right = torch.from_numpy(hits(start, still.validation)).nonzero().flatten()
    with torch.no_grad():
        confidence = start(next(still.validation.subset(right).batches(100))[0]).softmax(1).max(1).values
    easy = still.validation.subset(
        right[confidence.argsort(descending=True)[10:20]]
    )  # no loss is lower than that of the first ten
    tuned = finetune(able, None, TrainingData(still.train, easy), replace(SETTINGS, learning_rate=0.02), 7)

    assert {tuned.start, *tuned.accuracies} == {100.0}
    assert tuned.epoch
    assert tuned.notices == ()
    assert validation_loss(tuned.module, easy) < validation_loss(start, easy)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Validation(90.0, 2.0), Validation(89.0, 0.1)),
        (Validation(100.0, 0.1), Validation(100.0, 0.2)),
        (Validation(100.0, 0.1), Validation(100.0, math.inf)),
    ],
    ids=["by accuracy", "by loss", "by a loss that is a number"],
)
def test_validations_are_compared_by_accuracy_and_then_by_loss(better: Validation, worse: Validation) -> None:
    assert better.is_better_than(worse)
    assert not worse.is_better_than(better)
    assert not better.is_better_than(better)


def test_training_that_helps_says_nothing(still: Splits) -> None:
    tuned = finetune(tiny(), None, TrainingData(still.train, still.validation), SETTINGS, 7)

    assert tuned.start is not None
    assert tuned.start < max(tuned.accuracies)
    assert tuned.epoch
    assert tuned.accuracies[tuned.epoch - 1] == max(tuned.accuracies)
    assert tuned.notices == ()


def test_no_epochs_leave_the_network_as_it_was_scored(still: Splits, able: nn.Module, tmp_path: Path) -> None:
    tuned = finetune(
        able, tiny(1), TrainingData(still.train, still.validation), replace(UNNAMED, epochs=0), 7, Tracking(tmp_path / "state")
    )

    assert equal(tuned.module.state_dict(), as_scored(able, still, seed=7))
    assert (tuned.epoch, tuned.accuracies, tuned.learning_rate) == (0, (), None)
    assert [notice.partition(",")[0] for notice in tuned.notices] == ["not fine-tuned"]


def test_the_statistics_that_are_shipped_are_those_of_the_weights_that_are_shipped(still: Splits) -> None:
    """Running averages lag behind the weights; here they are estimated once more from the weights."""
    settings = replace(SETTINGS, epochs=2, learning_rate=0.2)
    tuned = finetune(tiny(), None, TrainingData(still.train, still.validation), settings, 7)
    again = as_scored(tuned.module, still, seed=7)

    assert tuned.epoch
    assert all(torch.allclose(tensor, again[name], atol=1e-5) for name, tensor in tuned.module.state_dict().items())


def test_of_statistics_with_and_without_augmentation_those_that_answer_better_are_kept(digits: Splits, able: nn.Module) -> None:
    scores = {}
    for name, batches in (
        ("as they are", digits.train.batches(256)),
        ("augmented", digits.train.training_batches(256, seed=7, epoch=0)),
    ):
        module = copy.deepcopy(able).to(memory_format=torch.channels_last)
        recalibrate(module, (pixels for pixels, _ in batches))
        scores[name] = accuracy(module, digits.validation)
    tuned = finetune(able, None, TrainingData(digits.train, digits.validation), replace(SETTINGS, epochs=0), 7)

    assert len(set(scores.values())) == 2
    assert accuracy(tuned.module, digits.validation) == tuned.start == max(scores.values())


# training that diverges


def test_a_rate_that_is_far_too_high_ends_with_an_error_that_says_so(digits: Splits) -> None:
    with pytest.raises(
        TrainingDiverged, match=r"fine-tuning diverged .* 1e\+12, 1e\+11, 1e\+10, 1e\+09: .* lower --learning-rate"
    ):
        finetune(tiny(), tiny(1), TrainingData(digits.train, digits.validation), replace(SETTINGS, learning_rate=1e12), 7)


def plain() -> nn.Module:
    """Two linear layers without BatchNorm: a high rate makes them overflow."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()


@on_the_cpu
def test_training_that_diverges_goes_on_from_its_best_state_with_a_lower_rate(digits: Splits, tmp_path: Path) -> None:
    """At 20 it diverges in its first epoch, at 2 in its second, at 0.2 it learns. Killed in between, it ends the same."""
    arguments = (plain(), None, TrainingData(digits.train, digits.validation), replace(SETTINGS, learning_rate=20.0), 7)
    never = finetune(*arguments)

    def kill(done: int, total: int, text: str) -> None:
        if "rate 0.2," in text and done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(*arguments, Tracking(tmp_path / "state", kill))
    resumed = finetune(*arguments, Tracking(tmp_path / "state"))

    assert never.learning_rate == pytest.approx(0.2)
    assert never.start is not None
    assert max(never.accuracies) > never.start + 30
    assert [re.findall(r"diverged in epoch (\d) at peak rate (\d+)", notice) for notice in never.notices] == [
        [("1", "20")],
        [("2", "2")],
    ]
    assert (resumed.notices, resumed.accuracies) == (never.notices, never.accuracies)
    assert equal(resumed.module.state_dict(), never.module.state_dict())


def spoilt_after(fetches: int, images: Images) -> Images:
    """After so many fetches every pixel is no number."""
    numbers = itertools.count(1)
    return replace(images, fetch=lambda chosen: images.fetch(chosen).float() * (1.0 if next(numbers) <= fetches else math.nan))


def test_training_that_goes_on_diverging_ends_with_its_best_epoch(digits: Splits) -> None:
    """Two fetches for the sizes of images, two for the statistics, two with augmentation, one for the first loss, 5 for the epoch, two
    for its statistics.
    """
    train = spoilt_after(14, digits.train)
    tuned = finetune(tiny(), None, TrainingData(train, digits.validation), replace(SETTINGS, learning_rate=0.2), 7)

    assert len(tuned.accuracies) == 1
    assert accuracy(tuned.module, digits.validation) == max(tuned.start or 0.0, *tuned.accuracies)
    assert "training diverged again at peak rate 0.0002 and ended before epoch 2" in tuned.notices


def test_images_that_are_no_numbers_are_named_as_the_cause(digits: Splits) -> None:
    with pytest.raises(TrainingDiverged, match="check whether images and labels"):
        finetune(tiny(), None, TrainingData(spoilt_after(1, digits.train), digits.validation), replace(UNNAMED, epochs=1), 7)


# what a checkpoint may be


def of_an_earlier_version(path: Path) -> None:
    """As it was written before the network as it was scored counted as an epoch."""
    tensors = {f"{part}/{name}": tensor for part in ("now", "best") for name, tensor in tiny().state_dict().items()}
    notes = {"identity": "0" * 64, "epoch": "2", "best_score": "91.0", "history": "[90.0, 91.0]", "learning_rate": "0.05"}
    save_file(tensors, path, notes)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_no_state(path: Path) -> None:
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, {**notes, "state": '{"epoch": 1}'})


def of_half_a_network(path: Path) -> None:
    with safe_open(path, "pt") as file:
        notes = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("best/0")}  # noqa: SIM118
    save_file(tensors, path, notes)


@on_the_cpu
@pytest.mark.parametrize("change", [of_an_earlier_version, cut_short, of_no_state, of_half_a_network])
def test_a_checkpoint_that_cannot_be_used_is_made_anew_and_that_is_said(
    digits: Splits, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    settings = replace(SETTINGS, epochs=2)
    alone, history = run(digits, settings, checkpoint=tmp_path / "state")
    change(tmp_path / "state")
    tuned = finetune(tiny(), tiny(1), TrainingData(digits.train, digits.validation), settings, 7, Tracking(tmp_path / "state"))

    assert "fine-tuning starts again" in tuned.notices[0]
    assert tuned.accuracies == history
    assert equal(tuned.module.state_dict(), alone)


# what is learned, and from what


@pytest.fixture(scope="module")
def all_digits() -> Splits:
    return load_digits(None, seed=0)


@pytest.fixture(scope="module")
def learned(all_digits: Splits) -> Finetuned:
    """A tiny network that was trained with all digits."""
    return finetune(tiny(1), None, TrainingData(all_digits.train, all_digits.validation), LONGER, 0)


def test_a_tiny_network_learns_the_digits(all_digits: Splits, learned: Finetuned) -> None:
    assert accuracy(tiny(1), all_digits.test) < 30
    assert accuracy(learned.module, all_digits.test) > 80
    assert len(learned.accuracies) == 8
    assert learned.learning_rate == 0.2


def test_a_teacher_alone_teaches(all_digits: Splits, learned: Finetuned) -> None:
    """All labels are wrong, and count for nothing: the student follows the teacher, who knows."""
    wrong = replace(all_digits.train, labels=(all_digits.train.labels + 1) % 10)
    data = TrainingData(wrong, all_digits.validation)
    student = finetune(tiny(), learned.module, data, replace(LONGER, distillation=1.0), 0).module

    assert accuracy(student, all_digits.test) > 70


def test_the_best_validation_epoch_is_returned_and_not_the_last(digits: Splits) -> None:
    """Validation labels are wrong on purpose, so that every step makes it worse."""
    wrong = replace(digits.validation, labels=(digits.validation.labels + 1) % 10)
    tuned = finetune(tiny(), None, TrainingData(digits.train, wrong), replace(SETTINGS, epochs=6, learning_rate=0.2), 0)

    assert max(tuned.accuracies) > tuned.accuracies[-1]
    assert accuracy(tuned.module, wrong) == max(tuned.start or 0.0, *tuned.accuracies)


def test_student_and_teacher_are_left_as_they_were(digits: Splits) -> None:
    student, teacher = tiny(), tiny(1)
    before = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    found = finetune(student, teacher, TrainingData(digits.train, digits.validation), replace(SETTINGS, epochs=1), 0).module

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
    found = training_loss(student, teacher if taught else None, torch.tensor(labels), settings)

    expected = (1 - share) * hard + share * temperature**2 * soft if taught else hard
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("epochs", [2, 5, 20])
def test_the_learning_rate_rises_for_one_epoch_and_falls_to_zero_along_a_cosine(epochs: int) -> None:
    rates = [schedule(step / 100, epochs) for step in range(100 * epochs + 1)]

    assert rates[0] == 0.01
    assert rates[50] == 0.5
    assert rates[100] == max(rates) == 1.0
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert schedule((1 + epochs) / 2, epochs) == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0)


def test_a_single_epoch_has_its_peak_in_the_middle() -> None:
    assert [round(schedule(step / 4, 1), 2) for step in range(5)] == [0.01, 0.5, 1.0, 0.5, 0.0]


def test_a_last_batch_of_one_image_is_left_out(digits: Splits) -> None:
    """65 images in batches of 64: BatchNorm cannot learn from the last one."""
    train = Images(digits.train.fetch, digits.train.labels, digits.train.indices[:65], digits.train.preprocessing)
    seen: list[tuple[int, int]] = []
    finetune(
        tiny(),
        None,
        TrainingData(train, digits.validation),
        replace(SETTINGS, epochs=2),
        0,
        Tracking(None, lambda done, total, text: seen.append((done, total))),
    )

    assert seen == [(1, 4), (3, 4)]


class Watched(nn.Module):
    """pixels -> linear(10). It remembers how many images it got at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head, self.seen = nn.Linear(64, 10), list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.head(images.flatten(1))


def test_a_batch_of_large_images_is_learned_in_parts_with_the_same_result(
    digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50 images in batches of 20, 20 and 10, of which at most 6 can be learned at once."""
    data = (digits.train.subset(torch.arange(50)), digits.validation)
    found = {}
    for values in (2**22, 2 * 6 * 64):
        monkeypatch.setattr("pipeline.data.images.MOST_VALUES", values)
        setup = replace(TrainingSetup.of(None, data, SETTINGS, 20, 0), train=data[0].subset(torch.arange(50)))
        learner = learner_of(Watched(), setup)
        losses = list(train_epoch(learner, setup, 0, lambda _: 0.05))
        found[values] = learner.module, torch.tensor(losses)
    (whole, losses), (parts, losses_of_parts) = found.values()

    assert (whole.seen, parts.seen) == ([20, 20, 10], [5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    torch.testing.assert_close(losses_of_parts, losses, rtol=1e-3, atol=1e-3)  # the learner may compute in bfloat16
    torch.testing.assert_close(parts.head.weight, whole.head.weight, rtol=1e-2, atol=1e-3)
