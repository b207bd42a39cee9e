"""Several budgets: one search for all of them. Every plan that is evaluated counts for every budget.

The latency and the score of a plan do not depend on the budget. So an evaluation holds the violations of all limits, and each
budget reads its own. Each budget has a searcher of its own. The searchers take turns, and each learns from the plans of the rest.
"""

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, Problem, Searcher, SearcherFactory, SharingSearcher, TrialsSpent

__all__ = ["several_budgets"]

Places = Sequence[int]
"""Which violations of an evaluation belong to a budget."""


def several_budgets(make: SearcherFactory, budgets: Sequence[Places]) -> SearcherFactory:
    """Return a function that makes one searcher for all `budgets`. With one budget, it is `make`.

    The budgets share the trials equally. A function that does the search itself is called once per budget.
    """

    def made(problem: Problem) -> Searcher | None:
        members, known = [], {answer.plan: answer for answer in problem.known}
        for number, places in enumerate(budgets):
            part = _part(problem, places, number, len(budgets))
            with suppress(TrialsSpent):
                searcher = make(part)
                if searcher is not None:
                    members.append(_Member(searcher, places, part.trials))
        return _Turns(members, known) if members else None

    return made if len(budgets) > 1 else make


def _part(problem: Problem, places: Places, number: int, count: int) -> Problem:
    """The problem of the budget `number` of `count`: its violations, and its share of the trials."""
    trials = problem.trials // count + (number < problem.trials % count)
    left = trials

    def evaluate(plan: ChannelPlan) -> Evaluation:
        nonlocal left
        if left <= 0:
            raise TrialsSpent
        left -= 1
        return _under(problem.evaluate(plan), places)

    return replace(
        problem,
        evaluate=evaluate,
        trials=trials,
        constraints=len(places),
        seed=problem.seed + number,
        known=tuple(_under(answer, places) for answer in problem.known),
    )


def _under(answer: Evaluation, places: Places) -> Evaluation:
    """The evaluation under one budget."""
    return replace(answer, violations=tuple(answer.violations[place] for place in places))


@dataclass
class _Member:
    """The searcher of one budget."""

    searcher: Searcher
    places: Places
    trials: int
    asked: int = 0
    new: int = 0
    """Number of asked plans that no searcher had asked for before."""
    waiting: deque[ChannelPlan] = field(default_factory=deque)
    """Asked plans that it was not told yet."""


class _Turns:
    """The searcher of all budgets."""

    def __init__(self, members: Sequence[_Member], known: dict[ChannelPlan, Evaluation]) -> None:
        self._members, self._known = members, known
        self._pending: set[ChannelPlan] = set()

    def ask(self, n: int) -> tuple[ChannelPlan, ...]:
        """At most `n` plans; see `Searcher`. No plan is asked twice."""
        plans = list[ChannelPlan]()
        while len(plans) < n and (plan := self._next()) is not None:
            plans.append(plan)
        return tuple(plans)

    def tell(self, answers: Sequence[Evaluation]) -> None:
        """Take the next answers; see `Searcher`."""
        for answer in answers:
            self._pending.discard(answer.plan)
            self._known[answer.plan] = answer
            for member in self._members:
                if answer.plan in member.waiting:
                    self._answer(member)
                elif isinstance(member.searcher, SharingSearcher):
                    member.searcher.learn([_under(answer, member.places)])

    def _next(self) -> ChannelPlan | None:
        """A new plan of the budget that had the fewest so far. None if all searchers need answers first, or have ended."""
        for member in sorted(self._members, key=lambda member: member.new):
            while member.asked < member.trials and (plans := member.searcher.ask(1)):
                member.asked += 1
                member.waiting.append(plans[0])
                if plans[0] not in self._known and plans[0] not in self._pending:
                    member.new += 1
                    self._pending.add(plans[0])
                    return plans[0]
                self._answer(member)
        return None

    def _answer(self, member: _Member) -> None:
        """Tell `member` the answers to its oldest plans, as far as they are known."""
        while member.waiting and member.waiting[0] in self._known:
            member.searcher.tell([_under(self._known[member.waiting.popleft()], member.places)])
