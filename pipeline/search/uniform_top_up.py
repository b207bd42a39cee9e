"""Uniform and topped up: the best uniform plan, and then the rest of the budget, group by group.

Most of what a search gains over `uniform` may be budget that a single fraction leaves unspent. This control spends it, without a
model and without looking at scores.
"""

from pipeline.search.problem import Evaluation, Problem
from pipeline.search.start import BISECTION_TRIALS, find_start, recording

__all__ = ["uniform_top_up"]


def uniform_top_up(problem: Problem) -> None:
    """Search with `problem.trials` evaluations; see `Searcher`.

    In each trial one group becomes one width wider, the one with the smallest share of MACs first. A wider group that is not
    within the budget goes back, and stays as it is. So does a block that was dropped and is put back.
    """
    space, asked = problem.space, list[Evaluation]()
    asking = recording(problem, asked)
    start = find_start(asking, min(BISECTION_TRIALS, problem.trials))
    widths = list(space.widths_in(space.plan(start.tolist())))
    order = sorted(range(len(widths)), key=lambda number: space.choices[number].macs_share)
    growing = set(order)
    while growing and len(asked) < problem.trials:
        for number in order:
            wider = [width for width in space.choices[number].widths if width > widths[number]]
            if number not in growing or not wider:
                growing.discard(number)
                continue
            before, widths[number] = widths[number], wider[0]
            if len(asked) == problem.trials:
                return
            if not asking.evaluate(space.plan_of(widths)).feasible:
                widths[number] = before
                growing.discard(number)
