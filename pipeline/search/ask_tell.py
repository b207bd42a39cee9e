"""Ask and tell: how a search gives out plans, and how it takes the evaluations.

`search` drives any searcher. A searcher of this package is a generator: it yields plans, and it yields `WAIT` where it needs all
answers before it can go on. It reads what is known so far from a `SearchState`.

    @ask_and_tell
    def middle_first(state: SearchState) -> Questions[None]:
        yield state.space.uniform(0.5)
        yield WAIT
        yield state.space.uniform(0.75 if state.answers[-1].feasible else 0.25)
"""

import functools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Concatenate, Final, ParamSpec, TypeVar

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, Problem, Searcher, SearcherFactory, SearchSpace

__all__ = ["WAIT", "Questions", "SearchState", "answered", "ask_and_tell", "at_once", "drive", "search", "wait_for"]

T = TypeVar("T")
P = ParamSpec("P")


class _Wait:
    """The type of WAIT."""


WAIT: Final = _Wait()
"""A generator yields this where it cannot go on before all its plans are answered."""

Questions = Generator[ChannelPlan | _Wait, None, T]
Submit = Callable[[int, ChannelPlan], Callable[[], Evaluation]]
"""Starts the evaluation of a plan, given its number from 1. It returns a function that waits for the evaluation."""


@dataclass
class SearchState:
    """What a searcher asked and what it was told."""

    problem: Problem
    answers: list[Evaluation] = field(default_factory=list)
    """The known evaluations, and then those of the asked plans, in the order in which they were asked."""
    pending: list[ChannelPlan] = field(default_factory=list)
    """Plans that were asked and are not answered yet."""
    others: list[Evaluation] = field(default_factory=list)
    """Evaluations of plans that a search for another budget asked for. They grow while this search goes on."""
    wanted: int = 1
    """Number of plans that the current `ask` still wants, the next one included."""

    def __post_init__(self) -> None:
        """The answers start with what is known before the search."""
        self.answers.extend(self.problem.known)

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.problem.space

    @property
    def asked(self) -> int:
        """Number of plans that were asked."""
        return len(self.answers) - len(self.problem.known) + len(self.pending)

    @property
    def exhausted(self) -> bool:
        """Whether every plan of the space was asked, or is known."""
        return len({*(answer.plan for answer in (*self.answers, *self.others)), *self.pending}) >= self.space.size


class _Stepwise:
    """The searcher of a generator."""

    def __init__(self, state: SearchState, questions: Questions[object]) -> None:
        self._state, self._questions = state, questions
        self._waiting = self._ended = False

    def ask(self, n: int) -> tuple[ChannelPlan, ...]:
        """At most `n` plans; see `Searcher`."""
        state, plans = self._state, list[ChannelPlan]()
        while len(plans) < n and not self._ended and not (self._waiting and state.pending):
            state.wanted = n - len(plans)
            try:
                found = next(self._questions)
            except StopIteration:
                self._ended = True
                break
            self._waiting = isinstance(found, _Wait)
            if not isinstance(found, _Wait):
                plans.append(found)
                state.pending.append(found)
        return tuple(plans)

    def tell(self, answers: Sequence[Evaluation]) -> None:
        """Take the next answers; see `Searcher`. Raises ValueError for an answer to another plan than the oldest pending one."""
        for answer in answers:
            if not self._state.pending or answer.plan != self._state.pending[0]:
                raise ValueError(f"answers must be told in the order in which plans were asked; got an answer to {answer.plan}")
            del self._state.pending[0]
            self._state.answers.append(answer)

    def learn(self, others: Sequence[Evaluation]) -> None:
        """Take evaluations that another search asked for; see `SharingSearcher`."""
        self._state.others.extend(others)


def wait_for(state: SearchState, answers: int, meanwhile: deque[ChannelPlan]) -> Questions[None]:
    """Wait until there are so many answers. Until then, plans of `meanwhile` are taken and asked."""
    while len(state.answers) < answers:
        yield meanwhile.popleft() if meanwhile else WAIT


def ask_and_tell(
    questions: Callable[Concatenate[SearchState, P], Questions[object]],
) -> Callable[Concatenate[Problem, P], Searcher]:
    """Make a searcher of a generator function. It takes a problem in place of the state."""

    def make(problem: Problem, /, *args: P.args, **kwargs: P.kwargs) -> Searcher:
        state = SearchState(problem)
        return _Stepwise(state, questions(state, *args, **kwargs))

    functools.update_wrapper(make, questions)
    return make


def answered(
    problem: Problem, questions: Callable[Concatenate[SearchState, P], Questions[T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Answer every plan of a generator with `problem.evaluate`, one at a time, and return what the generator returns."""
    state = SearchState(problem)
    steps = questions(state, *args, **kwargs)
    while True:
        try:
            found = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if not isinstance(found, _Wait):
            state.answers.append(problem.evaluate(found))


def search(make: SearcherFactory, problem: Problem) -> None:
    """Run the searcher of `make` with `problem.evaluate`, one plan at a time."""
    searcher = make(problem)
    if searcher is not None:
        drive(searcher, at_once(problem.evaluate), problem.trials, in_flight=1)


def at_once(evaluate: Callable[[ChannelPlan], Evaluation]) -> Submit:
    """Return the `submit` of `drive` that evaluates each plan before it returns."""

    def submit(_number: int, plan: ChannelPlan) -> Callable[[], Evaluation]:
        answer = evaluate(plan)
        return lambda: answer

    return submit


def drive(searcher: Searcher, submit: Submit, trials: int, in_flight: int) -> None:
    """Ask for up to `trials` plans, and keep up to `in_flight` of them in evaluation.

    Evaluations may end in any order. They are told in the order in which their plans were asked, one at a time, and each is
    followed by the next question. So the plans depend on the evaluations and on `in_flight`, not on durations.
    """
    waiting: deque[Callable[[], Evaluation]] = deque()
    asked = 0
    while True:
        room = min(in_flight - len(waiting), trials - asked)
        for plan in searcher.ask(room) if room > 0 else ():
            asked += 1
            waiting.append(submit(asked, plan))
        if not waiting:
            return
        searcher.tell([waiting.popleft()()])
