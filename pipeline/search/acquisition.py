"""Acquisition function: constrained expected improvement, which picks the next plans to evaluate."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.search.ask_tell import Questions, SearchState
from pipeline.search.believe import believed
from pipeline.search.problem import Evaluation
from pipeline.search.surrogate import Surrogate, fit

__all__ = ["ask_best", "highest_acquisition"]

Floats = NDArray[np.float64]


def ask_best(state: SearchState, model: Surrogate, kept: Floats, answers: Sequence[Evaluation]) -> Questions[None]:
    """Ask for as many of the proposals `kept` (n, groups) as are wanted, the best first. Each one is believed before the next.

    `model` is fitted to `answers`, which are those of `believed`.
    """
    for number in range(state.wanted):
        if number:
            if state.exhausted:
                return
            answers = believed(state)
            model = fit(state.space, answers)
        yield state.space.plan(kept[highest_acquisition(model, kept, answers)].tolist())


def highest_acquisition(model: Surrogate, kept: Floats, answers: Sequence[Evaluation]) -> int:
    """The row of `kept` (n, groups) with the largest constrained expected improvement.

    A plan that was evaluated before is chosen only if all were.

        E[max(0, score - best)] prod_k P(violation_k <= 0)    (Gardner et al., ICML 2014, equation 6)
    """
    predicted = model.predict(kept)
    error = np.maximum(predicted.score_error, 1e-6)
    # nothing is feasible yet: any score is an improvement, so feasibility decides
    best = max((answer.score for answer in answers if answer.feasible), default=float(predicted.score.min()))
    gain = (predicted.score - best) / error
    improvement = error * (gain * _phi(gain) + np.exp(-0.5 * gain**2) / np.sqrt(2 * np.pi))
    within = _phi(-predicted.violations / np.maximum(predicted.violation_errors, 1e-4)).prod(1)
    order = np.argsort(-(improvement + 1e-9) * (within + 1e-9), kind="stable")
    known = {answer.plan for answer in answers}
    return int(next((row for row in order if model.space.plan(kept[row].tolist()) not in known), order[0]))


def _phi(values: Floats) -> Floats:
    """Cumulative distribution function of the standard normal distribution."""
    below: Floats = torch.special.ndtr(torch.from_numpy(values)).numpy()
    return below
