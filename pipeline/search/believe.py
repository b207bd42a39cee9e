"""Believe: what a searcher assumes about plans that are still being evaluated, so that the next plan differs from them."""

import numpy as np

from pipeline.search.ask_tell import SearchState
from pipeline.search.problem import Evaluation
from pipeline.search.surrogate import fit, fractions

__all__ = ["believed"]


def believed(state: SearchState) -> list[Evaluation]:
    """All evaluations so far, and for each pending plan the mean that a surrogate predicts (Ginsbourger, Le Riche and Carraro,
    2010, "Kriging is well-suited to parallelize optimization": Kriging believer). At least one evaluation must be known.
    """
    known = [*state.others, *state.answers]
    if not state.pending:
        return known
    predicted = fit(state.space, known).predict(np.stack([fractions(state.space, plan) for plan in state.pending]))
    means = zip(state.pending, predicted.score.tolist(), predicted.violations.tolist(), strict=True)
    return [*known, *(Evaluation(plan, score, tuple(violations)) for plan, score, violations in means)]
