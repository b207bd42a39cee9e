"""Promise: which of many plans is worth the next trial, by the guesses of a model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.search.problem import Evaluation
from pipeline.search.surrogate import Surrogate

__all__ = ["highest_acquisition"]

Floats = NDArray[np.float64]


def highest_acquisition(model: Surrogate, kept: Floats, answers: Sequence[Evaluation]) -> int:
    """Of (n, groups) fractions on offer, the row with the largest expected improvement within the budget; a plan that was
    asked before only if all were.

        E[max(0, score - best)] prod_k P(overrun_k <= 0)    (Gardner et al., ICML 2014, equation 6)
    """
    guess = model.guess(kept)
    error = np.maximum(guess.score_error, 1e-6)
    # nothing feasible yet: any score is an improvement, and what counts is to come within
    best = max((answer.score for answer in answers if answer.feasible), default=float(guess.score.min()))
    gain = (guess.score - best) / error
    improvement = error * (gain * _phi(gain) + np.exp(-0.5 * gain**2) / np.sqrt(2 * np.pi))
    within = _phi(-guess.violations / np.maximum(guess.violation_errors, 1e-4)).prod(1)
    order = np.argsort(-(improvement + 1e-9) * (within + 1e-9), kind="stable")
    known = {answer.plan for answer in answers}
    return int(next((row for row in order if model.space.plan(kept[row].tolist()) not in known), order[0]))


def _phi(values: Floats) -> Floats:
    """Of the standard normal distribution, the share below."""
    below: Floats = torch.special.ndtr(torch.from_numpy(values)).numpy()
    return below
