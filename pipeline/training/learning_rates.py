"""Learning rates: which peak rate fine-tuning takes, found by short trials; and the batch size that fits a data set.

A high rate forgets what a good cut still knows, and a low one does not bring a bad cut back in time. So the rates are tried
for a few steps, and judged by the validation accuracy.
"""

from collections.abc import Callable

__all__ = ["RATES", "fitting_batch_size", "trial_steps", "tried_rate"]

RATES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Peak rates to choose from, the highest first."""
ALIKE = 1.0
"""Percentage points that the highest may be behind the best: a long training bears more than a short trial."""
WORSE_IN_A_ROW = 2
"""So many rates in succession, clearly worse than the best, end the trials."""
TRIAL_SHARE = 0.1
"""Of the steps of the whole training, for each trial."""
TRIAL_IMAGES = 10_000
"""At most, for each trial."""
FEWEST_STEPS = 16
"""At least, for each trial."""

LARGEST_BATCH = 128
SMALLEST_BATCH = 16
STEPS_PER_EPOCH = 16
"""That an epoch should have: with fewer, momentum and schedule have nothing to work on."""


def fitting_batch_size(images: int) -> int:
    """The largest power of two, from 16 to 128, with which an epoch of `images` has at least 16 steps.

    Examples: 50,000 images are trained on in batches of 128, 600 in batches of 32.
    """
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and size * STEPS_PER_EPOCH > images:
        size //= 2
    return size


def trial_steps(steps: int, batch_size: int) -> int:
    """How many steps each rate is tried for, where the whole training has `steps`."""
    return max(FEWEST_STEPS, min(int(TRIAL_SHARE * steps), TRIAL_IMAGES // batch_size))


def tried_rate(trial: Callable[[float], float], start: float) -> float:
    """The highest of `RATES` with which a short training ends about as well as with any other.

    `trial`: rate -> validation accuracy in percent at the end of a short training, from the same network each time.
    `start`: the accuracy of that network. Rates are tried from the highest down. Once a rate was no worse than the start, and
    the next two end more than a point below it, still lower ones are left out.
    """
    scores: dict[float, float] = {}
    for rate in RATES:
        scores[rate] = trial(rate)
        best = max(scores.values())
        last = list(scores.values())[-WORSE_IN_A_ROW:]
        if best >= start and all(score < best - ALIKE for score in last):
            break
    return next(rate for rate, score in scores.items() if score >= max(scores.values()) - ALIKE)
