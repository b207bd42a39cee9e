"""Recovery from few pictures: methods, recipe, rounds, and the choice between recovery and training in epochs."""

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.images import Images, Splits
from pipeline.data.sources import load_digits
from pipeline.errors import TrainingDiverged
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import rebuild_from_graph
from pipeline.graph.shrink import shrink
from pipeline.stages.finetune_chosen import kept_inputs_of
from pipeline.training.epochs import TrainingSetup, Validation, validated, validated_as_it_is
from pipeline.training.finetune import Finetuned, Tracking, TrainingData, finetune
from pipeline.training.recover.augment import varied
from pipeline.training.recover.batch_statistics import keeps_statistics, noise_of_batches
from pipeline.training.recover.folds import folds
from pipeline.training.recover.methods import AUTO, FEW, METHODS, MethodName, methods_of
from pipeline.training.recover.recipe import RATES, Recipe, best_recipe, first_recipe
from pipeline.training.recover.recover import _Recovery, _validated, recover
from pipeline.training.recover.state import CALMER, RecoveryState, choices, finish_round, is_better, next_steps
from pipeline.training.scoring import recalibrate
from pipeline.training.settings import FinetuneSettings, Recovery
from pipeline.training.statistics_shift import StatisticsShift, norms_of, set_shifts
from pipeline.training.task import Classification
from pipeline.training.teacher import Teacher

SHORT = FinetuneSettings(epochs=12, batch_size=20, learning_rate=0.02)


class Net(nn.Module):
    """x -> stem(16) -+-> conv(16) -+-> conv(24), every second pixel -> mean -> linear(10)"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.outer, self.bn2 = nn.Conv2d(16, 24, 3, 2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = x + F.relu(self.bn1(self.inner(x)))
        return self.head(F.relu(self.bn2(self.outer(x))).mean((2, 3)))


class Case(NamedTuple):
    student: nn.Module
    teacher: Teacher
    data: TrainingData
    """60 training and 40 validation pictures. No training picture has a label."""
    test: Images


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    """A network that knows the digits."""
    digits = load_digits(None, seed=0)
    torch.manual_seed(0)
    settings = FinetuneSettings(epochs=8, batch_size=64, learning_rate=0.2)
    return finetune(Net(), None, TrainingData(digits.train, digits.validation), settings, 0).module


@pytest.fixture(scope="module")
def digits() -> Splits:
    splits = load_digits(None, seed=0)
    few = splits.train.sample(60, 0)
    return replace(splits, train=few, validation=splits.validation.sample(40, 0))


def case_of(dense: nn.Module, digits: Splits, rebuilt: bool = False) -> Case:
    """Half of all channels are removed."""
    example = next(digits.train.batches(1))[0]
    network = analyse(copy.deepcopy(dense), example)
    if rebuilt:
        network = rebuild_from_graph(network, example, "the test asks for it")
    kept = {group.name: tuple(range(0, group.channels, 2)) for group in network.space.groups}
    student = shrink(network.module, network.space, kept).eval()
    teacher = Teacher(network.module.eval(), kept_inputs_of(network.module, network.space, kept))
    unlabelled = replace(digits.train, labels=torch.full_like(digits.train.labels, -1))
    return Case(student, teacher, TrainingData(unlabelled, digits.validation), digits.test)


@pytest.fixture(scope="module")
def case(dense: nn.Module, digits: Splits) -> Case:
    return case_of(dense, digits)


def agreement(module: nn.Module, case: Case) -> float:
    """Percent of the test pictures for which `module` has the dense network's answer."""
    pixels = next(case.test.batches(1000))[0]
    with torch.no_grad():
        same = module.eval()(pixels).argmax(1) == case.teacher.module(pixels).argmax(1)
    return 100 * float(same.float().mean())


def statistics_only(case: Case) -> nn.Module:
    module = copy.deepcopy(case.student)
    recalibrate(module, (pixels for pixels, _ in case.data.train.batches(256)))
    return module


def run(
    case: Case, method: Recovery = "distil", settings: FinetuneSettings = SHORT, tracking: Tracking | None = None
) -> Finetuned:
    return recover(case.student, case.teacher, case.data, replace(settings, recover=method), 7, tracking)


# methods


@pytest.mark.parametrize("method", METHODS)
def test_each_method_recovers_a_network_from_sixty_pictures_without_labels(case: Case, method: Recovery) -> None:
    assert agreement(run(case, method).module, case) > agreement(statistics_only(case), case) + 5


@pytest.mark.parametrize("method", ["mimic", "blocks"])
def test_a_network_that_is_rebuilt_from_its_graph_is_recovered_as_well(
    dense: nn.Module, digits: Splits, method: Recovery
) -> None:
    case = case_of(dense, digits, rebuilt=True)

    assert agreement(run(case, method).module, case) > agreement(statistics_only(case), case) + 5


def test_blocks_that_have_nothing_to_learn_are_skipped(case: Case) -> None:
    """Between the two places of this network, all layers are frozen, like a shortcut that selects channels."""
    student = copy.deepcopy(case.student)
    frozen = [*student.outer.parameters(), *student.bn2.parameters()]  # type: ignore[union-attr]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    found = run(case._replace(student=student), "blocks").module

    assert all(map(torch.equal, before, [*found.outer.parameters(), *found.bn2.parameters()]))  # type: ignore[union-attr]
    assert agreement(found, case) > agreement(statistics_only(case), case)


def test_networks_whose_features_cannot_be_compared_learn_the_outputs(case: Case) -> None:
    """Nothing is known of the channels that were kept."""
    unknown = case._replace(teacher=Teacher(case.teacher.module))
    mimicked, distilled = run(unknown, "mimic"), run(unknown, "distil")

    assert all(torch.equal(a, b) for a, b in zip(mimicked.module.parameters(), distilled.module.parameters(), strict=True))


def test_student_and_teacher_are_not_changed(case: Case) -> None:
    before = copy.deepcopy(case.student.state_dict()), copy.deepcopy(case.teacher.module.state_dict())
    found = run(case, "blocks").module

    for module, state in zip((case.student, case.teacher.module), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in found.parameters())


class Noisy(Net):
    """In training mode, a block is left out at random and outputs are dropped, as in EfficientNet."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        kept = torch.rand(len(x), 1, 1, 1) < 0.5 if self.training else 1.0
        x = x + kept * F.relu(self.bn1(self.inner(x)))
        return self.head(F.dropout(F.relu(self.bn2(self.outer(x))).mean((2, 3)), 0.5, self.training))


def test_a_network_learns_without_dropout_and_stochastic_depth_which_the_teacher_does_not_have(
    case: Case, dense: nn.Module, digits: Splits
) -> None:
    noisy = Noisy()
    noisy.load_state_dict(dense.state_dict())
    ours, theirs = (run(each, "mimic") for each in (case_of(noisy, digits), case))

    assert theirs.epoch == 1
    assert all(torch.equal(a, b) for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True))


def test_with_fixed_statistics_a_network_learns_with_the_statistics_it_has(case: Case) -> None:
    own = case._replace(student=case.teacher.module)
    setup = setup_of(own, 40)
    changed = []
    for fixed in (True, False):
        recovery = _Recovery(("mimic",), own.student, own.teacher, setup, lambda done, total, text: None, time.monotonic, 0.0)
        learner = recovery.learner(recipe := Recipe("mimic", "SGD", 0.01, 20, fixed=fixed))
        before = copy.deepcopy(learner.module.state_dict())
        recovery.train(learner, recipe, 3, 0, lambda step: None)
        now = learner.module.state_dict()
        changed.append([name for name in now if name.endswith("running_mean") and not torch.equal(now[name], before[name])])

    assert changed == [[], ["bn0.running_mean", "bn1.running_mean", "bn2.running_mean"]]


def tuned_by(recipe: Recipe, case: Case, monkeypatch: pytest.MonkeyPatch) -> Finetuned:
    """One round of `recipe`, as if trials had chosen it."""
    monkeypatch.setattr("pipeline.training.recover.recover.best_recipe", lambda *choices: (recipe, 0))
    return run(case, recipe.method, replace(SHORT, learning_rate=None, epochs=12))


def with_a_far_too_large_correction(case: Case) -> Case:
    """It shows whether a correction was used."""
    student = copy.deepcopy(case.student)
    sizes = {name: norm.num_features for name, norm in norms_of(student).items()}
    set_shifts(student, {name: StatisticsShift(torch.zeros(size), torch.full((size,), 2.0)) for name, size in sizes.items()})
    return case._replace(student=student)


def test_a_network_that_learns_with_fixed_statistics_starts_with_re_estimated_ones_and_keeps_them_if_they_are_better(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start has the statistics of the training pictures; after training, estimates with the wrong correction are worse."""
    recipe = Recipe("mimic", "AdamW", 0.003, 20, fixed=True)
    tuned = tuned_by(recipe, with_a_far_too_large_correction(case), monkeypatch)
    start = statistics_only(with_a_far_too_large_correction(case))

    assert tuned.epoch == 1
    assert torch.allclose(tuned.module.bn2.running_mean, start.bn2.running_mean, atol=1e-5)  # type: ignore[union-attr,arg-type]
    assert torch.allclose(tuned.module.bn2.running_var, start.bn2.running_var, atol=1e-5)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("stale", [True, False])
def test_fixed_statistics_are_re_estimated_where_that_brings_the_outputs_closer(case: Case, stale: bool) -> None:
    """Those of the dense network do not fit the pruned one. Re-estimated ones do, until they are estimated on half of the scale."""
    setup, module = setup_of(case, 40), copy.deepcopy(case.student)
    if not stale:
        validated(module, setup)
        setup = replace(setup, calibration=replace(setup.calibration, fetch=lambda chosen: case.data.train.fetch(chosen) / 2))
    before = copy.deepcopy(module.bn2.running_var)
    found = _validated(module, setup, fixed=True)

    assert found == validated_as_it_is(module, setup)
    assert torch.equal(module.bn2.running_var, before) != stale  # type: ignore[arg-type]


def test_a_network_that_learned_with_the_statistics_of_each_batch_gets_estimates_without_a_correction(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tuned_by(Recipe("mimic", "AdamW", 0.003, 20), with_a_far_too_large_correction(case), monkeypatch)
    again = copy.deepcopy(tuned.module)
    set_shifts(again, {})
    recalibrate(again, (pixels for pixels, _ in case.data.train.batches(256)))

    assert tuned.epoch == 1
    assert torch.allclose(tuned.module.bn2.running_var, again.bn2.running_var, rtol=0.3)  # type: ignore[union-attr,arg-type]


def test_statistics_that_are_not_corrected_are_those_of_varied_pictures(case: Case) -> None:
    """The network learned with the statistics of batches of such pictures."""
    plain = setup_of(case, 40)
    preprocessing = plain.calibration.preprocessing.model_copy(update={"augment": ("flip",)})
    setup = replace(plain, calibration=replace(plain.calibration, preprocessing=preprocessing))
    found, varied_ones, same = (copy.deepcopy(case.student) for _ in range(3))

    _validated(found, setup, fixed=False)
    validated(varied_ones, replace(setup, augmented=True))
    validated(same, setup)

    assert torch.equal(found.bn2.running_mean, varied_ones.bn2.running_mean)
    assert not torch.equal(found.bn2.running_mean, same.bn2.running_mean)


class Uneven(nn.Module):
    """BatchNorm, then a linear layer. Its statistics are those of all `pictures`; batches differ from them."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm2d(1, momentum=1.0), nn.Linear(64, 10)
        self.norm(pictures)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).flatten(1))


@pytest.mark.parametrize(("batch_size", "factor", "fixed"), [(2, 1.9, True), (2, 2.1, False), (60, 1e-3, False)])
def test_statistics_are_fixed_if_those_of_batches_change_the_dense_networks_outputs_by_half_of_the_pruned_ones_error(
    case: Case, batch_size: int, factor: float, fixed: bool
) -> None:
    """A single batch of all 60 pictures has the statistics of the network."""
    torch.manual_seed(0)
    pixels, _ = next(case.data.train.batches(60))
    setup = replace(setup_of(case, 40), teacher=Uneven(pixels))
    distance = factor * noise_of_batches(setup, 2)

    assert keeps_statistics(setup, batch_size, distance) is fixed


def test_a_network_without_batch_norm_layers_has_no_noise_of_batches(case: Case) -> None:
    setup = replace(setup_of(case, 40), teacher=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))

    assert noise_of_batches(setup, 2) == 0.0


# rounds


def test_a_recovery_that_does_not_help_ships_the_network_as_it_was_scored(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student is the whole dense network. With the statistics of each batch, its outputs do not come closer to its own."""
    own = case._replace(student=case.teacher.module)
    tuned = tuned_by(Recipe("distil", "SGD", 0.5, 20), own, monkeypatch)

    assert tuned.epoch == 0
    assert agreement(tuned.module, own) > 95
    assert [notice.partition(":")[0] for notice in tuned.notices] == ["training from few pictures did not improve the network"]


def test_a_rate_that_is_far_too_high_ends_with_an_error_that_says_so(case: Case) -> None:
    with pytest.raises(TrainingDiverged, match="diverged in its first round"):
        run(case, settings=replace(SHORT, learning_rate=1e20))


def test_a_recovery_that_is_killed_goes_on_after_its_trials_and_ends_the_same(case: Case, tmp_path: Path) -> None:
    settings = replace(SHORT, epochs=2, learning_rate=None)
    whole = run(case, settings=settings)

    def kill(done: int, total: int, text: str) -> None:
        if "round 1" in text:
            raise KeyboardInterrupt

    def no_trial(done: int, total: int, text: str) -> None:
        assert "round" in text

    with pytest.raises(KeyboardInterrupt):
        run(case, settings=settings, tracking=Tracking(tmp_path / "state", kill))
    resumed = run(case, settings=settings, tracking=Tracking(tmp_path / "state", no_trial))

    assert resumed.accuracies == whole.accuracies
    assert resumed.choices[0] == whole.choices[0]
    assert all(torch.equal(a, b) for a, b in zip(resumed.module.parameters(), whole.module.parameters(), strict=True))


BOTH = [Recipe("mimic", "AdamW", 0.001, 32), Recipe("distil", "SGD", 0.01, 32)]


def state(**changes: object) -> RecoveryState:
    usual = RecoveryState(BOTH, 5, start_score=50.0, start_loss=1.0, best_loss=1.0)
    return replace(usual, **changes)  # type: ignore[arg-type]


MINUTE = FinetuneSettings(minutes=1.0)


@pytest.mark.parametrize(
    ("found", "settings", "steps"),
    [
        (state(), MINUTE, 64),
        (state(steps=[64, 128], best_round=2), MINUTE, 256),
        (state(steps=[64, 128], best_round=1, failures=1), MINUTE, 128),
        (state(steps=[64, 128, 128], best_round=1, failures=2), MINUTE, 128),
        (state(steps=[64, 128, 128, 128, 128], best_round=1, failures=4), MINUTE, 0),
        (state(steps=[64], best_round=1, seconds=50.0, seconds_per_step=0.1), MINUTE, 100),
        (state(steps=[64], best_round=1, seconds=30.0, seconds_per_step=0.1), MINUTE, 300),
        (state(steps=[64], best_round=1, seconds=10.0, seconds_per_step=0.1), MINUTE, 128),
        (state(recipes=BOTH[:1], seconds=18.0, seconds_per_step=0.5), MINUTE, 84),
        (state(steps=[64], best_round=1, seconds=59.5, seconds_per_step=0.1), MINUTE, 0),
        (state(seconds=61.0), MINUTE, 0),
        (state(steps=[64], best_round=1, ended=True), MINUTE, 0),
        (state(), FinetuneSettings(epochs=3), 21),
        (state(steps=[21], best_round=1), FinetuneSettings(epochs=3), 0),
    ],
    ids=[
        "first",
        "doubled",
        "the other method",
        "lower rates",
        "no gain",
        "cut by the time",
        "as long as the time lasts",
        "enough time for a longer one",
        "one round",
        "too short",
        "no time",
        "diverged",
        "named epochs",
        "one round of named epochs",
    ],
)
def test_rounds_double_until_they_do_not_pay_or_the_time_is_over(
    found: RecoveryState, settings: FinetuneSettings, steps: int
) -> None:
    """200 pictures in batches of 32 are seven steps per epoch."""
    assert next_steps(found, settings, 200) == steps


def test_a_network_is_better_if_its_outputs_are_closer_and_it_answers_no_worse_than_the_start() -> None:
    assert is_better(Validation(50.0, 0.9), state())
    assert not is_better(Validation(49.0, 0.5), state())
    assert not is_better(Validation(60.0, 1.0), state())


def test_after_a_round_that_does_not_pay_the_other_method_has_a_turn_and_the_first_one_a_lower_rate() -> None:
    found = state()
    better = [finish_round(found, 64, Validation(55.0, loss)) for loss in (0.9, 0.95, 0.8)]

    assert better == [True, False, True]
    assert (found.best_round, found.best_loss, found.failures) == (3, 0.8, 0)
    assert found.recipes == [BOTH[1], replace(BOTH[0], rate=BOTH[0].rate * CALMER)]


def test_what_the_trials_chose_and_the_rounds_that_followed_are_told_apart() -> None:
    """two rounds of the first method, and one of the second"""
    found = replace(state(), trials=4, first=str(BOTH[0]))
    for loss in (0.9, 0.95, 0.8):
        finish_round(found, 64, Validation(55.0, loss))
    chosen, trained = choices(found, SHORT, 60)

    assert chosen.endswith(f"; 4 short trials chose: {BOTH[0]}")
    assert trained.startswith("192 steps in 3 rounds (mimic at 0.001, mimic at 0.001, distil at 0.01), ")


# recipe


def valley(best: Recipe, recipe: Recipe) -> float:
    """A loss with its lowest value at `best`."""
    return (
        abs(math.log(recipe.rate / best.rate))
        + (recipe.strong != best.strong)
        + abs(math.log(recipe.batch_size / best.batch_size))
        + 10 * (recipe.optimizer != best.optimizer)
    )


@given(
    st.sampled_from(AUTO), st.sampled_from([(name, rate) for name in RATES for rate in RATES[name]]), st.booleans(), st.booleans()
)
def test_trials_find_the_best_recipe_of_a_smooth_loss(
    method: MethodName, optimizer: tuple[Any, float], strong: bool, fixed: bool
) -> None:
    best, settings = Recipe(method, *optimizer, 32, strong, fixed), FinetuneSettings()
    first = first_recipe(method, settings, 500, fixed=fixed)

    assert best_recipe(lambda recipe: valley(best, recipe), first, settings, 500, lambda: True)[0] == best


@pytest.mark.parametrize("size", [16, 32, 64])
def test_trials_find_the_batch_size(size: int) -> None:
    best, settings = Recipe("distil", "SGD", 0.02, size), FinetuneSettings()
    first = first_recipe("distil", settings, 500)

    assert best_recipe(lambda recipe: valley(best, recipe), first, settings, 500, lambda: True)[0] == best


def test_without_time_only_the_first_recipe_is_tried() -> None:
    first = first_recipe("mimic", FinetuneSettings(), 500)

    assert best_recipe(lambda recipe: 1.0, first, FinetuneSettings(), 500, lambda: False) == (first, 1)


def test_what_is_named_is_not_tried_and_a_named_rate_needs_no_trial() -> None:
    def trial(recipe: Recipe) -> float:
        assert recipe.batch_size == 8
        return 1.0

    for settings, trials in ((FinetuneSettings(batch_size=8), True), (FinetuneSettings(learning_rate=0.3, batch_size=8), False)):
        found, count = best_recipe(trial, first_recipe("blocks", settings, 500), settings, 500, lambda: True)
        assert (count > 0) is trials

    assert found == Recipe("blocks", "SGD", 0.3, 8)


@pytest.mark.parametrize(("pictures", "size"), [(2, 2), (10, 5), (50, 25), (64, 32), (5000, 32)])
def test_a_batch_is_at_most_half_of_the_pictures(pictures: int, size: int) -> None:
    assert first_recipe("mimic", FinetuneSettings(), pictures).batch_size == size


# variation


def test_pictures_are_varied_by_the_generator_alone_and_keep_their_shape() -> None:
    pixels = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    first, again, other = (varied(pixels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))

    assert first.shape == pixels.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first, pixels)


@given(st.integers(0, 200))
def test_a_variation_shows_parts_of_the_pictures_and_nothing_else(seed: int) -> None:
    """Without the change of colour, no value lies outside those of the batch."""
    pixels = torch.rand(4, 1, 9, 7, generator=torch.Generator().manual_seed(seed))
    found = varied(pixels, torch.Generator().manual_seed(seed), colour=0.0)

    assert float(found.min()) >= float(pixels.min()) - 1e-5
    assert float(found.max()) <= float(pixels.max()) + 1e-5


# the choice


@pytest.mark.parametrize(
    ("settings", "pictures", "methods"),
    [
        (FinetuneSettings(), FEW, ()),
        (FinetuneSettings(), 50_000, ()),
        (FinetuneSettings(), FEW - 1, AUTO),
        (FinetuneSettings(), 10, AUTO),
        (FinetuneSettings(recover="none"), 50, ()),
        (FinetuneSettings(epochs=0, recover="blocks"), 50, ()),
        (FinetuneSettings(recover="blocks"), 50_000, ("blocks",)),
    ],
)
def test_with_many_pictures_a_network_is_trained_in_epochs(
    settings: FinetuneSettings, pictures: int, methods: tuple[MethodName, ...]
) -> None:
    assert methods_of(settings, pictures) == methods


def test_a_task_with_many_pictures_trains_exactly_as_fine_tuning_does(dense: nn.Module, tmp_path: Path) -> None:
    digits = load_digits(None, seed=0)
    settings = FinetuneSettings(epochs=1, learning_rate=0.01)
    torch.manual_seed(1)
    student = Net()
    by_task = Classification(digits, settings, 0).finetune(student, dense, 0, tmp_path / "state", lambda done, total, text: None)
    direct = finetune(student, dense, TrainingData(digits.train, digits.validation), settings, 0)

    assert len(digits.train) >= FEW
    assert all(torch.equal(a, b) for a, b in zip(by_task.module.parameters(), direct.module.parameters(), strict=True))


def test_where_the_time_does_not_suffice_for_two_trials_there_are_none(case: Case) -> None:
    """A hundredth of a second. The first recipes are taken, with a low rate for the features."""
    seen: list[str] = []
    tracking = Tracking(progress=lambda done, total, text: seen.append(text))
    tuned = run(case, "auto", replace(SHORT, learning_rate=None, epochs=1, minutes=0.01 / 60), tracking)

    assert seen[0].startswith("round 1, step 1 of 3: mimic, AdamW, peak rate 0.0003, ")
    assert "; no trials: " in tuned.choices[0]
    assert len(tuned.accuracies) == 1


def test_where_the_time_does_not_suffice_for_a_round_the_notice_says_how_long_a_step_takes(case: Case) -> None:
    tuned = run(case, "auto", replace(SHORT, learning_rate=None, epochs=None, minutes=0.01 / 60))
    (notice,) = tuned.notices

    assert tuned.accuracies == ()
    assert notice.startswith("--finetune-minutes 0.00017 is too short to train this network: a step takes about 0.")


# cross-validation


def setup_of(case: Case, validation: int) -> TrainingSetup:
    images = case.data.train, case.data.validation.sample(validation, 0)
    return TrainingSetup.of(case.teacher.module, images, replace(SHORT, distillation=1.0), 20, 0)


@pytest.mark.parametrize(("validation", "count"), [(4, 3), (15, 3), (19, 2), (20, 1), (40, 1)])
def test_with_very_few_validation_pictures_others_are_held_out_in_turn(case: Case, validation: int, count: int) -> None:
    """60 training pictures. Every fold has all pictures, and none of them twice."""
    setup = setup_of(case, validation)
    found = folds(setup)
    held_out = [next(fold.validation.batches(100))[0] for fold in found]

    assert found[0] is setup
    assert len(found) == count
    for fold, pixels in zip(found, held_out, strict=True):
        every = torch.cat([pixels, *(batch for batch, _ in fold.train.batches(100))])
        assert len(pixels) == validation
        assert len(every.flatten(1).unique(dim=0)) == len(every) == 60 + validation
    assert len(torch.cat(held_out).flatten(1).unique(dim=0)) == count * validation


def test_a_recovery_with_very_few_validation_pictures_chooses_by_all_folds(case: Case) -> None:
    """No training picture has a label."""
    few = case._replace(data=TrainingData(case.data.train, case.data.validation.sample(3, 0)))
    tuned = run(few, "distil", replace(SHORT, epochs=1, learning_rate=None))

    assert "short trials chose" in tuned.choices[0]
    assert math.isfinite(tuned.start or math.nan)
