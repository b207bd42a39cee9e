"""Learning rates: find the peak rate of fine-tuning by short trials, and a batch size that fits the data set.

A high rate destroys what a lightly pruned network still knows. With a low rate, a heavily pruned network does not recover in
time. So each rate is tried for a few steps and rated by the validation accuracy.
"""

from collections.abc import Callable, Sequence

__all__ = ["RATES", "fitting_batch_size", "trial_steps", "tried_rate"]

RATES = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
"""Peak rates to choose from, the highest first."""
ALIKE = 1.0
"""Percentage points that the chosen rate may be below the best, because long trainings tolerate higher rates than trials."""
WORSE_IN_A_ROW = 2
"""Number of successive rates, clearly worse than the best, that ends the trials."""
TRIAL_SHARE = 0.1
"""Steps of each trial, as a share of the steps of the whole training."""
TRIAL_IMAGES = 10_000
"""Largest number of images for each trial."""
FEWEST_STEPS = 16
"""Least number of steps of each trial."""

LARGEST_BATCH = 128
SMALLEST_BATCH = 16
STEPS_PER_EPOCH = 16
"""Least number of steps that an epoch should have, so that momentum and schedule have an effect."""


def fitting_batch_size(images: int) -> int:
    """Return the largest power of two, from 16 to 128, with which an epoch of `images` has at least 16 steps.

    Examples: 128 for 50,000 images, 32 for 600 images.
    """
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and size * STEPS_PER_EPOCH > images:
        size //= 2
    return size


def trial_steps(steps: int, batch_size: int) -> int:
    """Return the number of steps of each trial, for a training of `steps` steps."""
    return max(FEWEST_STEPS, min(int(TRIAL_SHARE * steps), TRIAL_IMAGES // batch_size))


def tried_rate(trial: Callable[[float], float], start: float, rates: Sequence[float] = RATES) -> float:
    """Return the highest of `rates` whose trial scores at most one percentage point below the best trial.

    `trial` maps a rate to the validation accuracy in percent after a short training, which always starts from the same network.
    `start` is the accuracy of that network. Rates are tried from the highest down. The trials end when the best one is no
    worse than `start` and the last two score more than a point below it.
    """
    scores: dict[float, float] = {}
    for rate in rates:
        scores[rate] = trial(rate)
        best = max(scores.values())
        last = list(scores.values())[-WORSE_IN_A_ROW:]
        if best >= start and all(score < best - ALIKE for score in last):
            break
    return next(rate for rate, score in scores.items() if score >= max(scores.values()) - ALIKE)
