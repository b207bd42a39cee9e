"""Recover: train a pruned network from few pictures, in rounds of steps; resumable by round.

With few pictures an epoch is only a few steps, so the schedule counts steps. Short trials choose the recipe of the first method.
Rounds of 64, 128, 256, ... steps follow, each with a whole schedule (Loshchilov & Hutter, arXiv 1608.03983), from the best
network so far. After a round that does not improve it, its method gets a lower rate, and the other method, if there is one, has a
turn. Rounds end when no method improves it in two turns, or when the time is over.

Round 0 is the network as it was scored, with re-estimated BatchNorm statistics. Trials start there. A training with the
statistics of each batch re-estimates them before it is validated. One with fixed statistics is validated with these and with
re-estimated ones, and keeps the better ones.

A network is better if its outputs are closer to the teacher's on the validation pictures, and if it answers at least as many of
these rightly as round 0. Hits alone would decide by a picture or two.
"""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.progress import Progress
from pipeline.system.files import sha256_bytes
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.divergence import all_finite, has_diverged
from pipeline.training.epochs import (
    Learner,
    TrainingSetup,
    Validation,
    learner_of,
    validated,
    validated_as_it_is,
    validated_start,
)
from pipeline.training.execution_mode import train_norms
from pipeline.training.finetune import Finetuned, Tracking, TrainingData
from pipeline.training.finetune_checkpoint import resume, save_state
from pipeline.training.recover.augment import varied
from pipeline.training.recover.batch_statistics import keeps_statistics
from pipeline.training.recover.folds import folds
from pipeline.training.recover.methods import AUTO, METHODS, MethodName, methods_of
from pipeline.training.recover.recipe import FIRST_BATCH, Recipe, best_recipe, first_batch_size, first_recipe
from pipeline.training.recover.state import (
    RecoveryState,
    choices,
    finish_round,
    is_better,
    next_steps,
    outcome,
    retreat,
)
from pipeline.training.settings import FinetuneSettings
from pipeline.training.statistics_shift import set_shifts
from pipeline.training.teacher import Teacher

__all__ = ["recover"]

CHECKPOINT_FORMAT = 3
TRIALS = 4
"""Number of trials for which the time should suffice."""
FEWEST_TRIAL_STEPS, MOST_TRIAL_STEPS = 8, 64
"""Steps of a trial with the first batch size. Others see as many pictures. Fewer steps prefer rates that are too low later."""
TRIAL_SHARE = 0.3
"""Share of the time that trials may take. If not even two of them fit, there are none."""
SLOW_RATE = 3e-4
"""Rate of AdamW without trials. It improved EfficientNet-Lite0 with fixed statistics; see docs/decisions/0026-few-pictures.md."""
TIMED_STEPS = 2
PLACES_PICTURES = 4


@dataclass(frozen=True)
class _Recovery:
    """One recovery: the networks, the methods to choose from, and the data."""

    methods: tuple[MethodName, ...]
    student: nn.Module
    """The network of round 0."""
    teacher: Teacher
    setup: TrainingSetup
    progress: Progress
    clock: Callable[[], float]
    started: float

    def learner(self, recipe: Recipe, state: dict[str, Tensor] | None = None) -> Learner:
        """A copy of the student on the device, with a new optimizer. `state` replaces its tensors."""
        learner = learner_of(self.student, self.setup)
        if state:
            learner.module.load_state_dict(state)
        parameters, decay = learner.module.parameters(), self.setup.settings.weight_decay
        if recipe.optimizer == "AdamW":
            return replace(learner, optimizer=torch.optim.AdamW(parameters, lr=0.0, weight_decay=decay))
        return learner

    def train(self, learner: Learner, recipe: Recipe, steps: int, first_epoch: int, report: Callable[[int], None]) -> bool:
        """Train for `steps` steps with a whole schedule. Returns False as soon as the loss diverges."""
        module, setup, losses = learner.module, self.setup, list[float]()
        placed = Teacher(setup.teacher or self.teacher.module, self.teacher.kept_inputs)
        few = next(setup.train.batches(PLACES_PICTURES))[0]
        objective = METHODS[recipe.method](module, placed, setup.placed(few, module))
        generator = torch.Generator().manual_seed(1_000_003 * setup.seed + first_epoch)
        if recipe.fixed:
            module.eval()
        else:
            train_norms(module)
        for step, pixels in enumerate(islice(_batches(setup, recipe, first_epoch), steps)):
            done = step / steps
            for group in learner.optimizer.param_groups:
                group["lr"] = recipe.rate * objective.rate(done)
            placed_pixels = setup.placed(varied(pixels, generator) if recipe.strong else pixels, module)
            with mixed_precision(setup.device):
                loss = objective.loss(placed_pixels, done)
            learner.optimizer.zero_grad()
            loss.backward()
            learner.optimizer.step()
            losses.append(float(loss.detach()))
            if has_diverged(losses, max(losses[0], 1.0)):
                return False
            report(step + 1)
        return True


def recover(
    student: nn.Module,
    teacher: Teacher,
    data: TrainingData,
    settings: FinetuneSettings,
    seed: int,
    tracking: Tracking | None = None,
) -> Finetuned:
    """Train a copy of `student` by the methods of `settings.recover`, and return its best state on `data.validation`.

    Labels of `data.train` are not used. The state is saved in the checkpoint after the trials and after each round. An
    interrupted recovery continues from there, and the time that was spent counts. If training diverges, it returns to its best
    state and continues with a tenth of the rate, at most three times. Raises TrainingDiverged when no round can be finished, and
    StorageError.
    """
    tracking, methods = tracking or Tracking(), AUTO if settings.recover == "auto" else methods_of(settings, 0)
    settings = replace(settings, distillation=1.0)
    started = tracking.clock()
    setup = TrainingSetup.of(teacher.module, (data.train, data.validation), settings, settings.batch_size or 0, seed)
    before = learner_of(student, setup)
    setup, start = validated_start(before, setup)
    recovery = _Recovery(methods, before.finished(), teacher, setup, tracking.progress, tracking.clock, started)
    shapes = [(name, list(tensor.shape)) for name, tensor in student.state_dict().items()]
    asked = [CHECKPOINT_FORMAT, settings.facts(), seed, len(data.train), len(data.validation), shapes]
    identity = sha256_bytes(json.dumps(asked).encode())

    learner = recovery.learner(first_recipe(methods[0], settings, len(data.train)))
    state, notice = resume(tracking.checkpoint, learner, identity, RecoveryState)
    if state is None:
        state = _begin(recovery, learner, start)
        state.notices.extend([notice] if notice else [])
        save_state(tracking.checkpoint, learner, state, identity)
    spent = state.seconds - (recovery.clock() - recovery.started)
    while (steps := next_steps(state, settings, len(data.train))) > 0:
        _run_round(recovery, learner, state, steps)
        state.seconds = spent + recovery.clock() - recovery.started
        save_state(tracking.checkpoint, learner, state, identity)
    for ours, theirs in zip(learner.module.parameters(), student.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return Finetuned(
        module=learner.finished(),
        learning_rate=state.recipe.rate,
        accuracies=tuple(state.history),
        start=state.start_score,
        epoch=state.best_round or (None if state.best_loss < state.start_loss else 0),
        notices=(*state.notices, *outcome(state, settings)),
        choices=choices(state, settings, len(data.train)),
    )


def _begin(recovery: _Recovery, learner: Learner, start: Validation) -> RecoveryState:
    """Choose the recipe of the first method by trials. `learner` continues from the best one. `start` is round 0's validation."""
    setup, settings = recovery.setup, recovery.setup.settings
    pictures = len(setup.train)
    learner.keep_as_best()
    state = RecoveryState([], 0, start.accuracy, start.loss, start.loss)
    limit_s, numbers, parts = settings.minutes * 60 * TRIAL_SHARE, count(1), folds(setup)
    fixed = keeps_statistics(setup, first_batch_size(settings, pictures), start.loss)
    firsts = [first_recipe(method, settings, pictures, fixed=fixed) for method in recovery.methods]
    trial_pictures = 0
    if settings.learning_rate is None:
        trial_pictures, state.seconds_per_step = _trial_length(recovery, firsts[0], limit_s / len(parts))

    def trial(recipe: Recipe) -> float:
        number = next(numbers)
        steps = max(trial_pictures // recipe.batch_size, 1)
        if settings.epochs is not None:
            steps = min(steps, settings.epochs * math.ceil(pictures / recipe.batch_size))

        def report(step: int) -> None:
            share = min((recovery.clock() - recovery.started) / limit_s, 1.0)
            recovery.progress(int(100 * TRIAL_SHARE * share), 100, f"trial {number}: {recipe}, step {step} of {steps}")

        losses = []
        for part in parts:
            trained = recovery.learner(recipe)
            if not replace(recovery, setup=part).train(trained, recipe, steps, 0, report):
                return math.inf
            found = _validated(trained.module, part, fixed=recipe.fixed)
            if not all_finite(trained.module):
                return math.inf
            if part is setup and is_better(found, state):
                state.best_loss = found.loss
                learner.module.load_state_dict(trained.module.state_dict())
                learner.keep_as_best()
            losses.append(found.loss)
        return sum(losses) / len(losses)

    def goes_on() -> bool:
        return recovery.clock() - recovery.started < limit_s

    trial_s = state.seconds_per_step * trial_pictures / FIRST_BATCH
    if settings.learning_rate is None and recovery.clock() - recovery.started + 2 * trial_s * len(parts) > limit_s:
        state.recipes = [replace(each, rate=SLOW_RATE) if each.optimizer == "AdamW" else each for each in firsts]
    else:
        best, state.trials = best_recipe(trial, firsts[0], settings, pictures, goes_on)
        state.recipes = [best, *firsts[1:]]
    state.first = str(state.recipe)
    state.seconds = recovery.clock() - recovery.started
    return state


def _validated(module: nn.Module, setup: TrainingSetup, *, fixed: bool) -> Validation:
    """Validate a trained network, with the statistics that are best for it.

    For a network that learned with fixed statistics, these or re-estimated ones are better: its weights fit the fixed ones, but
    have changed what reaches them. A network that learned with the statistics of each batch gets those of varied pictures, if
    training varied them. They are not corrected by the dense network's own, because it learned to do without.
    """
    if fixed:
        as_it_is, state = validated_as_it_is(module, setup), copy.deepcopy(module.state_dict())
        again = validated(module, setup)
        if again.loss < as_it_is.loss:
            return again
        module.load_state_dict(state)
        return as_it_is
    set_shifts(module, {})
    varied_pictures = bool(setup.calibration.preprocessing.augment)
    return validated(module, replace(setup, augmented=setup.augmented or varied_pictures))


def _trial_length(recovery: _Recovery, recipe: Recipe, limit_s: float) -> tuple[int, float]:
    """Pictures of each trial, so that four trials fit into `limit_s`, and seconds per step, both from timing a few steps."""
    learner = recovery.learner(recipe)
    recovery.train(learner, recipe, 1, 0, lambda step: None)  # the first step is slower, because memory is allocated
    started = recovery.clock()
    recovery.train(learner, recipe, TIMED_STEPS, 0, lambda step: None)
    step_s, started = (recovery.clock() - started) / TIMED_STEPS, recovery.clock()
    validated(learner.module, recovery.setup)
    steps = int((limit_s / TRIALS - (recovery.clock() - started)) / step_s)
    return min(max(steps, FEWEST_TRIAL_STEPS), MOST_TRIAL_STEPS) * FIRST_BATCH, step_s


def _run_round(recovery: _Recovery, learner: Learner, state: RecoveryState, steps: int) -> None:
    """Train for one round from the best state, and keep the result if it is better. Raises TrainingDiverged."""
    number, settings, recipe = len(state.steps) + 1, recovery.setup.settings, state.recipe
    trained, started = recovery.learner(recipe, learner.best), recovery.clock()

    def report(step: int) -> None:
        share = state.seconds / (60 * settings.minutes) if settings.epochs is None else TRIAL_SHARE
        part = steps * state.seconds_per_step / (60 * settings.minutes) if settings.epochs is None else 1 - TRIAL_SHARE
        done = min(share + part * step / steps, 1.0)
        recovery.progress(int(100 * done), 100, f"round {number}, step {step} of {steps}: {recipe}")

    whole = recovery.train(trained, recipe, steps, 1000 * number, report)
    found = _validated(trained.module, recovery.setup, fixed=recipe.fixed) if whole else None
    if found is None or not all_finite(trained.module):
        retreat(state, number)
        return
    state.seconds_per_step = (recovery.clock() - started) / steps
    if finish_round(state, steps, found):
        learner.module.load_state_dict(trained.module.state_dict())
        learner.keep_as_best()


def _batches(setup: TrainingSetup, recipe: Recipe, first_epoch: int) -> Iterator[Inputs]:
    """Endless batches of training pictures. A last batch of less than half the size is left out if there are others."""
    size = recipe.batch_size
    epochs = (setup.train.training_batches(size, setup.seed, epoch) for epoch in count(first_epoch))
    pictures = (pixels for pixels, _ in chain.from_iterable(epochs))
    return (pixels for pixels in pictures if 2 * len(pixels) >= min(size, len(setup.train)))
