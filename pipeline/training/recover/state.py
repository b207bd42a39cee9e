"""State of a recovery from few pictures: what was done, how long the next round is, and what is said at the end."""

import math
from dataclasses import dataclass, field, replace

from pipeline.errors import TrainingDiverged
from pipeline.training.divergence import LOWER, MOST_RETREATS
from pipeline.training.epochs import Validation
from pipeline.training.recover.recipe import Recipe
from pipeline.training.settings import FinetuneSettings

__all__ = ["RecoveryState", "choices", "finish_round", "is_better", "next_steps", "outcome", "retreat"]

FIRST_STEPS = 64
"""Steps of the first round. After a round that pays, the next one has twice as many."""
FEWEST_STEPS = 16
"""A round that the time cuts to fewer steps is not started."""
TURNS = 2
"""Number of turns of each method without an improvement after which training ends."""
CALMER = 0.3
"""Factor on the rate of a method after a round that did not pay."""
MOST_STEPS = 8192
"""Largest number of steps of a round."""
LAST = 3
"""A round takes all steps for which there is time if these are fewer than so many times its own. What would be left after it pays
less in a round of its own."""


@dataclass
class RecoveryState:
    """State of a recovery after a round. Scores are accuracies in percent on validation pictures."""

    recipes: list[Recipe]
    """The recipe of each method. The first one is used next."""
    trials: int
    start_score: float
    start_loss: float
    best_loss: float
    best_round: int = 0
    seconds: float = 0.0
    """Time spent so far, with the trials."""
    seconds_per_step: float = 0.0
    """Of the last round, with its validation. Before the first round, of a few steps that were timed; 0 if none were."""
    steps: list[int] = field(default_factory=list)
    """Steps of each finished round."""
    history: list[float] = field(default_factory=list)
    """Score after each round."""
    first: str = ""
    """The recipe of the first round, in words."""
    rounds: list[str] = field(default_factory=list)
    """Method and peak rate of each round, in words."""
    failures: int = 0
    """Number of last rounds that were not better than the best before."""
    retreats: int = 0
    ended: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the next round."""
        return self.recipes[0]


def next_steps(state: RecoveryState, settings: FinetuneSettings, pictures: int) -> int:
    """Return the steps of the next round, or 0 if there is none.

    After a round that does not pay, the other method is tried with as many steps. The last round takes all the time that is left.
    When no method pays twice in succession, there are no more rounds.
    """
    if state.ended:
        return 0
    if settings.epochs is not None:
        return 0 if state.steps else settings.epochs * math.ceil(pictures / state.recipe.batch_size)
    if state.failures == TURNS * len(state.recipes):
        return 0
    left = settings.minutes * 60 - state.seconds
    steps = min(FIRST_STEPS * 2 ** (len(state.steps) - state.failures), MOST_STEPS)
    if state.seconds_per_step:
        possible = int(left / state.seconds_per_step)
        steps = possible if possible < LAST * steps else steps
    return steps if left > 0 and steps >= FEWEST_STEPS else 0


def is_better(found: Validation, state: RecoveryState) -> bool:
    """Whether `found` is closer to the teacher than the best so far, and no worse than the start in accuracy."""
    return found.loss < state.best_loss and found.accuracy >= state.start_score


def finish_round(state: RecoveryState, steps: int, found: Validation) -> bool:
    """Add a round of `steps` steps to `state`. Returns whether it is the best so far.

    Otherwise the next method has its turn, and this one continues with a lower rate when its turn comes again.
    """
    better = is_better(found, state)
    state.rounds.append(f"{state.recipe.method} at {state.recipe.rate:g}")
    state.steps.append(steps)
    state.history.append(found.accuracy)
    if better:
        state.best_loss, state.best_round, state.failures = found.loss, len(state.steps), 0
    else:
        state.failures += 1
        first, *others = state.recipes
        state.recipes = [*others, replace(first, rate=first.rate * CALMER)]
    return better


def retreat(state: RecoveryState, number: int) -> None:
    """Lower the rate. After `MOST_RETREATS` times, end training. Raises TrainingDiverged when no round was finished."""
    recipe = state.recipe
    if state.retreats < MOST_RETREATS:
        state.retreats += 1
        state.notices.append(
            f"training diverged in round {number} at peak rate {recipe.rate:g}; it returned to its best state and continued with "
            f"peak rate {recipe.rate * LOWER:g}"
        )
        state.recipes[0] = replace(recipe, rate=recipe.rate * LOWER)
        return
    if not state.steps:
        raise TrainingDiverged(
            f"training from few pictures diverged in its first round, also at peak rate {recipe.rate:g}: the loss was not "
            "finite, or grew; check whether the images match the network, choose a lower --learning-rate, or use --epochs 0 to "
            "ship the network without fine-tuning"
        )
    state.notices.append(f"training diverged again at peak rate {recipe.rate:g} and ended before round {number}")
    state.ended = True


def choices(state: RecoveryState, settings: FinetuneSettings, pictures: int) -> tuple[str, ...]:
    """What was chosen, in words."""
    limit = "" if settings.epochs is not None else f" of {settings.minutes:g}"
    best = f"round {state.best_round}" if state.best_round else "a trial" if state.best_loss < state.start_loss else "the start"
    trials = f"{state.trials} short trials chose: " if state.trials else "no trials: "
    rounds = f"{len(state.steps)} round{'' if len(state.steps) == 1 else 's'}"
    rounds += f" ({', '.join(state.rounds)})" if state.rounds else ""
    return (
        f"recovered from {pictures} pictures, without labels; {trials}{state.first or state.recipe}",
        f"{sum(state.steps)} steps in {rounds}, {state.seconds / 60:.1f}{limit} minutes; the network of {best} "
        f"is shipped: its distance to the dense network's outputs went from {state.start_loss:.3g} to {state.best_loss:.3g}",
    )


def outcome(state: RecoveryState, settings: FinetuneSettings) -> list[str]:
    """A notice if the shipped network was not trained."""
    if state.best_loss < state.start_loss:
        return []
    if not state.steps and not state.trials and not state.ended:
        step = f": a step takes about {state.seconds_per_step:.2g} s" if state.seconds_per_step else ""
        return [
            f"--finetune-minutes {settings.minutes:.2g} is too short to train this network{step}; the network before "
            "fine-tuning is shipped"
        ]
    return [
        "training from few pictures did not improve the network: its validation score before was "
        f"{state.start_score:.2f} %; the network before fine-tuning is shipped; more pictures (--unlabelled) or more "
        "--finetune-minutes may help"
    ]
