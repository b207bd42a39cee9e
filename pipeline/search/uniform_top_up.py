"""Uniform and topped up: the best uniform plan, and then the rest of the budget, group by group.

Most of what a search gains over `uniform` may be budget that a single fraction leaves unspent. This control spends it, without a
model and without looking at scores.
"""

from collections import deque
from dataclasses import dataclass

from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell
from pipeline.search.start import BISECTION_TRIALS, find_start

__all__ = ["uniform_top_up"]


@dataclass
class _Step:
    """A group that became wider, in a plan that is not answered yet."""

    number: int
    before: int
    undone: bool = False


@ask_and_tell
def uniform_top_up(state: SearchState) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`.

    In each trial one group becomes one width wider, the one with the smallest share of MACs first. A wider group that is not
    within the budget goes back, and stays as it is. So does a block that was dropped and is put back.

    A plan that is not answered yet is believed to be within the budget. If it is not, all later steps are undone too.
    """
    space = state.space
    start = yield from find_start(state, min(BISECTION_TRIALS, state.problem.trials))
    widths = list(space.widths_in(space.plan(start.tolist())))
    order = sorted(range(len(widths)), key=lambda number: space.choices[number].macs_share)
    final, steps, told = set[int](), deque[_Step](), len(state.answers)

    def next_width(number: int) -> int | None:
        return next((width for width in space.choices[number].widths if width > widths[number] and number not in final), None)

    def take_answers() -> None:
        nonlocal told
        for answer in state.answers[told:]:
            step = steps.popleft()
            if answer.feasible or step.undone:
                continue
            final.add(step.number)
            for later in reversed([step, *steps]):
                if not later.undone:
                    widths[later.number], later.undone = later.before, True
        told = len(state.answers)

    while any(next_width(number) for number in order) or state.pending:
        asked = state.asked
        for number in order:
            wider = next_width(number)
            if wider is None:
                continue
            steps.append(_Step(number, widths[number]))
            widths[number] = wider
            yield space.plan_of(widths)
            take_answers()
        if state.asked == asked:
            yield WAIT
            take_answers()
