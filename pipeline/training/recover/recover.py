"""Recover: train a pruned network from few pictures, in rounds of steps; resumable by round.

With few pictures an epoch is only a few steps, so the schedule counts steps. Short trials choose the recipe. Then rounds of 64,
128, 256, ... steps follow, each with a whole schedule (Loshchilov & Hutter, arXiv 1608.03983), from the best network so far.
They end when a round does not improve it, or when the time is over. Round 0 is the network as it was scored. BatchNorm
statistics are estimated again before each validation. A network is better if its outputs are closer to the teacher's on the
validation pictures, and if it answers at least as many of these rightly as round 0. Hits alone would decide by a
picture or two.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, count, islice

import torch
from torch import Tensor, nn

from pipeline.system.files import sha256_bytes
from pipeline.training.bfloat16 import mixed_precision
from pipeline.training.divergence import all_finite, has_diverged
from pipeline.training.epochs import Learner, TrainingSetup, learner_of, validated
from pipeline.training.execution_mode import train_mode
from pipeline.training.finetune import Finetuned, Progress, Tracking, TrainingData
from pipeline.training.finetune_checkpoint import resume, save_state
from pipeline.training.recover.augment import varied
from pipeline.training.recover.methods import METHODS
from pipeline.training.recover.recipe import Recipe, best_recipe, first_recipe
from pipeline.training.recover.state import RecoveryState, choices, is_better, next_steps, outcome, retreat
from pipeline.training.settings import FinetuneSettings
from pipeline.training.teacher import Teacher

__all__ = ["recover"]

CHECKPOINT_FORMAT = 1
TRIAL_PICTURES = 1024
"""Pictures that a trial trains on; each may come several times."""
TRIAL_SHARE = 0.3
"""Share of the time that trials may take. The first one is always run."""
PLACES_PICTURES = 4


@dataclass(frozen=True)
class _Recovery:
    """One recovery: the networks, the method and the data."""

    method: str
    student: nn.Module
    teacher: Teacher
    setup: TrainingSetup
    progress: Progress
    started: float = field(default_factory=time.monotonic)

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
        objective = METHODS[self.method](module, placed, setup.placed(few, module))
        generator = torch.Generator().manual_seed(1_000_003 * setup.seed + first_epoch)
        torch.manual_seed(1_000_003 * setup.seed + first_epoch)  # for dropout
        train_mode(module)
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
    method: str,
    student: nn.Module,
    teacher: Teacher,
    data: TrainingData,
    settings: FinetuneSettings,
    seed: int,
    tracking: Tracking | None = None,
) -> Finetuned:
    """Train a copy of `student` with `method`, a name of METHODS, and return its best state on `data.validation`.

    Labels of `data.train` are not used. The state is saved in the checkpoint after the trials and after each round. An
    interrupted recovery continues from there, and the time that was spent counts. If training diverges, it returns to its best
    state and continues with a tenth of the rate, at most three times. Raises TrainingDiverged when no round can be finished, and
    StorageError.
    """
    tracking = tracking or Tracking()
    settings = replace(settings, distillation=1.0)
    setup = TrainingSetup.of(teacher.module, (data.train, data.validation), settings, settings.batch_size or 0, seed)
    recovery = _Recovery(method, student, teacher, setup, tracking.progress)
    shapes = [(name, list(tensor.shape)) for name, tensor in student.state_dict().items()]
    asked = [CHECKPOINT_FORMAT, method, asdict(settings), seed, len(data.train), len(data.validation), shapes]
    identity = sha256_bytes(json.dumps(asked).encode())

    learner = recovery.learner(first_recipe(settings, len(data.train)))
    state, notice = resume(tracking.checkpoint, learner, identity, RecoveryState)
    if state is None:
        state = _begin(recovery, learner)
        state.notices.extend([notice] if notice else [])
        save_state(tracking.checkpoint, learner, state, identity)
    spent = state.seconds - (time.monotonic() - recovery.started)
    recovery = replace(recovery, setup=replace(setup, augmented=state.augmented_statistics))
    while (steps := next_steps(state, settings, len(data.train))) > 0:
        _run_round(recovery, learner, state, steps)
        state.seconds = spent + time.monotonic() - recovery.started
        save_state(tracking.checkpoint, learner, state, identity)
    learner.module.load_state_dict(learner.best)
    for ours, theirs in zip(learner.module.parameters(), student.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return Finetuned(
        module=learner.module.cpu().to(memory_format=torch.contiguous_format).eval(),
        learning_rate=state.rate,
        accuracies=tuple(state.history),
        start=state.start_score,
        epoch=state.best_round,
        notices=(*state.notices, *outcome(state)),
        choices=choices(method, state, settings, len(data.train)),
    )


def _begin(recovery: _Recovery, learner: Learner) -> RecoveryState:
    """Validate round 0, and choose the recipe by trials. `learner` continues from the best trial."""
    setup, settings = recovery.setup, recovery.setup.settings
    pictures = len(setup.train)
    start = validated(learner.module, setup)
    learner.keep_as_best()
    if setup.calibration.preprocessing.augment:
        other = replace(setup, augmented=True)
        found = validated(learner.module, other)
        if found.is_better_than(start):
            setup, start = other, found
            learner.keep_as_best()
    state = RecoveryState("SGD", 0.0, 0, False, 0, start.accuracy, start.loss, setup.augmented, start.loss)
    numbers, limit = count(1), settings.minutes * 60 * TRIAL_SHARE

    def trial(recipe: Recipe) -> float:
        trained, number = recovery.learner(recipe), next(numbers)
        steps = max(TRIAL_PICTURES // recipe.batch_size, 1)
        if settings.epochs is not None:
            steps = min(steps, settings.epochs * math.ceil(pictures / recipe.batch_size))

        def report(step: int) -> None:
            share = min((time.monotonic() - recovery.started) / limit, 1.0)
            recovery.progress(int(100 * TRIAL_SHARE * share), 100, f"trial {number}: {recipe}, step {step} of {steps}")

        if not recovery.train(trained, recipe, steps, 0, report):
            return math.inf
        found = validated(trained.module, setup)
        if not all_finite(trained.module):
            return math.inf
        if is_better(found, state):
            state.best_loss = found.loss
            learner.module.load_state_dict(trained.module.state_dict())
            learner.keep_as_best()
        return found.loss

    def goes_on() -> bool:
        return time.monotonic() - recovery.started < limit

    recipe, state.trials = best_recipe(trial, settings, pictures, goes_on)
    state.optimizer, state.rate, state.batch_size, state.strong = recipe.optimizer, recipe.rate, recipe.batch_size, recipe.strong
    state.seconds = time.monotonic() - recovery.started
    return state


def _run_round(recovery: _Recovery, learner: Learner, state: RecoveryState, steps: int) -> None:
    """Train for one round from the best state, and keep the result if it is better. Raises TrainingDiverged."""
    number, settings = len(state.steps) + 1, recovery.setup.settings
    trained, started = recovery.learner(state.recipe, learner.best), time.monotonic()

    def report(step: int) -> None:
        share = state.seconds / (60 * settings.minutes) if settings.epochs is None else TRIAL_SHARE
        part = steps * state.seconds_per_step / (60 * settings.minutes) if settings.epochs is None else 1 - TRIAL_SHARE
        done = min(share + part * step / steps, 1.0)
        text = f"{recovery.method}, round {number}, step {step} of {steps}, rate {state.rate:g}"
        recovery.progress(int(100 * done), 100, text)

    whole = recovery.train(trained, state.recipe, steps, 1000 * number, report)
    found = validated(trained.module, recovery.setup) if whole else None
    if found is None or not all_finite(trained.module):
        retreat(state, number)
        return
    state.steps.append(steps)
    state.history.append(found.accuracy)
    state.seconds_per_step = (time.monotonic() - started) / steps
    if is_better(found, state):
        state.best_loss, state.best_round = found.loss, number
        learner.module.load_state_dict(trained.module.state_dict())
        learner.keep_as_best()


def _batches(setup: TrainingSetup, recipe: Recipe, first_epoch: int) -> Iterator[Tensor]:
    """Endless batches of training pictures. A last batch of less than half the size is left out if there are others."""
    size = recipe.batch_size
    epochs = (setup.train.training_batches(size, setup.seed, epoch) for epoch in count(first_epoch))
    pictures = (pixels for pixels, _ in chain.from_iterable(epochs))
    return (pixels for pixels in pictures if 2 * len(pixels) >= min(size, len(setup.train)))
