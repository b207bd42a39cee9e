"""Fine-tune: SGD or AdamW with a schedule, label smoothing and distillation from the dense network; resumable within an epoch.

Epoch 0 is the network as it was scored. Its BatchNorm statistics are re-estimated, as before each validation. It is returned if
no epoch of training does better on the validation images. The statistics come from unchanged or from augmented images, whichever
do better in epoch 0. If accuracies are equal, the lower loss is better.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.core.progress import Progress, no_progress
from pipeline.data.images import Images
from pipeline.errors import TrainingDiverged
from pipeline.system.files import sha256_bytes
from pipeline.training.divergence import LOWER, MOST_RETREATS, all_finite, ends_diverged, has_diverged
from pipeline.training.epochs import (
    Learner,
    TrainingSetup,
    Validation,
    distillation_loss,
    initial_reference_loss,
    learner_of,
    schedule,
    train_epoch,
    validated,
    validated_start,
)
from pipeline.training.finetune_checkpoint import TrainingState, resume, save_state
from pipeline.training.learning_rates import RATES, fitting_batch_size, trial_steps, tried_rate
from pipeline.training.settings import FinetuneSettings

__all__ = ["Finetuned", "Tracking", "TrainingData", "distillation_loss", "finetune"]

CHECKPOINT_FORMAT = 2
RATES_OVER_ADAMWS = {"sgd": 1, "adamw": 10}
"""What divides `RATES` for each optimizer."""


@dataclass(frozen=True)
class TrainingData:
    """The images that fine-tuning looks at."""

    train: Images
    validation: Images


@dataclass(frozen=True)
class Tracking:
    """Where fine-tuning keeps its state, and who is notified of its progress."""

    checkpoint: Path | None = None
    """None: the state is not kept."""
    progress: Progress = no_progress
    """Called after each step of training."""
    clock: Callable[[], float] = time.monotonic
    """Seconds, from which the time of a training with a time limit is computed. `time.process_time` does not count the work of
    other programs."""


@dataclass(frozen=True)
class Finetuned:
    """A trained network and the history of its training. Scores use all validation images, in percent for classification."""

    module: nn.Module
    learning_rate: float | None = None
    """Peak learning rate. None for a user's own training, and when there was no training."""
    accuracies: tuple[float, ...] = ()
    """Score after each epoch of training."""
    start: float | None = None
    """Score before training, with re-estimated BatchNorm statistics."""
    epoch: int | None = None
    """Epoch that `module` comes from; 0: the network before training. None if unknown."""
    notices: tuple[str, ...] = ()
    """Unexpected facts that the user should know."""
    choices: tuple[str, ...] = ()
    """What was chosen for training from few pictures, and why."""


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    data: TrainingData,
    settings: FinetuneSettings,
    seed: int,
    tracking: Tracking | None = None,
) -> Finetuned:
    """Train a copy of `student`, and return it as of its best epoch on `validation`. Epoch 0 is `student` as it was scored.

    The state is saved in `checkpoint` after every epoch, and within an epoch every `settings.save_minutes`. An interrupted run
    continues from there, with the same result. The batches of an epoch depend only on seed and epoch. If the settings have no
    learning rate, `RATES` are tried first. Only `train` and `validation` are used. If training diverges, it returns to its best
    state and continues with a tenth of the rate, at most three times.
    Raises TrainingDiverged when no epoch can be finished, and StorageError.
    """
    train, validation = data.train, data.validation
    tracking = tracking or Tracking()
    checkpoint, progress = tracking.checkpoint, tracking.progress
    batch_size = settings.batch_size or fitting_batch_size(len(train))
    setup = TrainingSetup.of(teacher, (train, validation), settings, batch_size, seed)
    learner = learner_of(student, setup)
    shapes = [(name, list(tensor.shape)) for name, tensor in student.state_dict().items()]
    asked = [CHECKPOINT_FORMAT, _identity(settings), batch_size, RATES, seed, len(train), len(validation), shapes]
    identity = sha256_bytes(json.dumps(asked).encode())

    state, notice = resume(checkpoint, learner, identity, TrainingState)
    if state is None:
        state = _begin(student, learner, setup, progress)
        state.notices.extend([notice] if notice else [])
        save_state(checkpoint, learner, state, identity)
    setup = replace(setup, augmented=state.augmented_statistics)
    report = _progress_reporter(state, setup, progress)
    save_s, last_s = 60 * settings.save_minutes, tracking.clock()

    def after_step(step: int) -> None:
        nonlocal last_s
        if tracking.clock() - last_s >= save_s:
            save_state(checkpoint, learner, state, identity)
            last_s = tracking.clock()
        report(step)

    while state.epoch < settings.whole_epochs:
        if _epoch(learner, setup, state, after_step):
            found = validated(learner.judged, setup)
            if all_finite(learner.judged):
                state.epoch += 1
                state.losses.clear()
                state.history.append(found.accuracy)
                if found.is_better_than(Validation(state.best_score, state.best_loss)):
                    state.best_score, state.best_loss, state.best_epoch = found.accuracy, found.loss, state.epoch
                    learner.keep_as_best()
                save_state(checkpoint, learner, state, identity)
                continue
        _return_to_best(learner, setup, state)
        save_state(checkpoint, learner, state, identity)
    return Finetuned(
        module=learner.finished(),
        learning_rate=state.learning_rate if settings.whole_epochs else None,
        accuracies=tuple(state.history),
        start=state.start_score,
        epoch=state.best_epoch,
        notices=(*state.notices, *_outcome(state, settings)),
    )


def _identity(settings: FinetuneSettings) -> dict[str, Any]:
    """What a checkpoint is bound to, in the form of older versions, whose checkpoints can still be resumed."""
    found = settings.facts() | {"epochs": settings.whole_epochs}
    return {name: value for name, value in found.items() if name not in ("recover", "minutes")}


def _begin(student: nn.Module, learner: Learner, setup: TrainingSetup, progress: Progress) -> TrainingState:
    """Run epoch 0, and choose the initial peak rate."""
    settings = setup.settings
    setup, found = validated_start(learner, setup)
    rate, reference = 0.0, 0.0
    if settings.whole_epochs:
        reference = initial_reference_loss(learner.judged, setup)
        rate = settings.learning_rate or _tried_rate(student, setup, found.accuracy, reference, progress)
    best = found.accuracy
    return TrainingState(rate, best, reference, best, best_loss=found.loss, augmented_statistics=setup.augmented)


def _tried_rate(student: nn.Module, setup: TrainingSetup, start: float, reference: float, progress: Progress) -> float:
    """Choose one of `RATES`, or a tenth of one for AdamW. Each is tried from the same network, on the same images."""
    settings, rates = setup.settings, [rate / RATES_OVER_ADAMWS[setup.settings.optimizer] for rate in RATES]
    whole = setup.settings.whole_epochs * setup.steps_per_epoch
    steps = trial_steps(whole, setup.batch_size)
    sample = replace(setup, train=setup.train.sample(steps * setup.batch_size, setup.seed))
    epochs = steps / sample.steps_per_epoch
    rounds, numbers = len(RATES) * steps + whole, count()

    def trial(rate: float) -> float:
        learner = replace(learner_of(student, setup), average=None)
        number, losses = next(numbers), list[float]()

        def epoch(of: int) -> Callable[[int], float]:
            return lambda step: (
                rate * schedule(of + step / sample.steps_per_epoch, epochs, settings.schedule, settings.warmup_epochs)
            )

        trained = chain.from_iterable(train_epoch(learner, sample, of, epoch(of)) for of in count())
        for done, loss in enumerate(islice(trained, steps), start=1):
            losses.append(loss)
            if has_diverged(losses, reference):
                return -math.inf
            progress(number * steps + done, rounds, f"trying learning rate {rate:g}, {number + 1} of at most {len(RATES)}")
        score = validated(learner.module, setup).accuracy
        return score if all_finite(learner.module) else -math.inf

    return tried_rate(trial, start, rates)


def _progress_reporter(state: TrainingState, setup: TrainingSetup, progress: Progress) -> Callable[[int], None]:
    """Return a function that reports to `progress`. Call it after every step with the number of steps done in the epoch.

    The steps in which rates are tried count as well, all of them, so that the share that is done never falls.
    """
    steps, epochs = setup.steps_per_epoch, setup.settings.whole_epochs
    whole = epochs * steps
    tried = 0 if setup.settings.learning_rate else len(RATES) * trial_steps(whole, setup.batch_size)

    def report(step: int) -> None:
        text = f"epoch {state.epoch + 1} of {epochs}, rate {state.learning_rate:g}, best {state.best_score:.2f} %"
        progress(tried + state.epoch * steps + step, tried + whole, text)

    return report


def _epoch(learner: Learner, setup: TrainingSetup, state: TrainingState, report: Callable[[int], None]) -> bool:
    """Train for one epoch, or for the rest of one. Returns False as soon as the loss diverges."""
    steps, settings, losses = setup.steps_per_epoch, setup.settings, state.losses

    def rate(step: int) -> float:
        done = state.epoch + step / steps
        return state.learning_rate * schedule(done, settings.whole_epochs, settings.schedule, settings.warmup_epochs)

    for loss in train_epoch(learner, setup, state.epoch, rate, len(losses)):
        losses.append(loss)
        if has_diverged(losses, state.reference_loss):
            return False
        report(len(losses))
    return not ends_diverged(losses, state.reference_loss)


def _return_to_best(learner: Learner, setup: TrainingSetup, state: TrainingState) -> None:
    """Return to the best state and lower the rate. After `MOST_RETREATS` returns, end training.

    Raises TrainingDiverged when no epoch was finished.
    """
    learner.return_to_best()
    state.losses.clear()
    if state.retreats < MOST_RETREATS:
        state.retreats += 1
        state.notices.append(
            f"training diverged in epoch {state.epoch + 1} at peak rate {state.learning_rate:g}; it returned to epoch "
            f"{state.best_epoch} and continued with peak rate {state.learning_rate * LOWER:g}"
        )
        state.learning_rate *= LOWER
        return
    if state.history:
        state.notices.append(
            f"training diverged again at peak rate {state.learning_rate:g} and ended before epoch {state.epoch + 1}"
        )
        state.epoch = setup.settings.whole_epochs
        return
    tried = ", ".join(f"{state.learning_rate / LOWER**back:g}" for back in range(state.retreats, -1, -1))
    advice = (
        "choose a lower --learning-rate, or omit it so that short trials choose one"
        if setup.settings.learning_rate
        else "check whether images and labels match the network"
    )
    raise TrainingDiverged(
        f"fine-tuning diverged in its first epoch at each of the peak rates {tried}: the loss was not finite, or far above "
        f"{state.reference_loss:.3g}, the loss at chance level; {advice}; or use --epochs 0 to ship the network without "
        "fine-tuning"
    )


def _outcome(state: TrainingState, settings: FinetuneSettings) -> list[str]:
    """A notice if the shipped network was not trained."""
    if not settings.whole_epochs:
        return [
            "not fine-tuned, because epochs is 0: the network from the search is shipped (validation score "
            f"{state.start_score:.2f} %)"
        ]
    if state.best_epoch:
        return []
    best = ""
    if state.history:
        equal = max(state.history) == state.start_score
        best = (
            ", the best epoch has the same accuracy and a higher loss"
            if equal
            else f", the best epoch {max(state.history):.2f} %"
        )
    return [
        f"fine-tuning did not improve the network: its validation score before was {state.start_score:.2f} %{best}; the "
        "network before fine-tuning is shipped; more training images, more --epochs or another --learning-rate may help"
    ]
