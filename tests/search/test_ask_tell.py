"""Ask and tell: several plans at once, answers in any order, and one plan at a time as before there was any other way."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.toys import CHAIN, SMOOTH, TOYS, Toy, best_feasible

from pipeline.core.plan import ChannelPlan
from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell, drive
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.searchers import SEARCHERS

LEARNERS = ("ppo-lagrangian", "ddpg-entropy", "pretrained")
"""Searchers that train for half a second after each trial."""
CHEAP = [name for name in SEARCHERS if name not in LEARNERS]
SEQUENCES = json.loads((Path(__file__).parent / "sequences.json").read_text())
"""Toy/searcher/seed/trials -> the widths of the plans that were asked when every searcher was a loop around `evaluate`."""


def problem_of(toy: Toy, trials: int, seed: int = 0) -> Problem:
    known = (toy.evaluation_of(toy.space.dense()), toy.evaluation_of(toy.space.thinnest()))
    return Problem(toy.space, toy.evaluation_of, trials, constraints=1, seed=seed, known=known)


def driven(name: str, problem: Problem, trials: int, in_flight: int = 1) -> list[ChannelPlan]:
    """The first plans that the searcher asks for, at most `trials`."""
    searcher, asked = SEARCHERS[name](problem), list[ChannelPlan]()
    assert searcher is not None

    def submit(number: int, plan: ChannelPlan) -> Callable[[], Evaluation]:
        asked.append(plan)
        return lambda: problem.evaluate(plan)

    drive(searcher, submit, trials, in_flight)
    return asked


@pytest.mark.parametrize("key", SEQUENCES)
def test_one_plan_at_a_time_gives_the_plans_of_a_loop_around_evaluate(key: str) -> None:
    """of the searchers that fit a model, the plans before the model: its last digits depend on the processor"""
    toy_name, name, seed, trials = key.split("/")
    toy = TOYS[toy_name]
    asked = driven(name, problem_of(toy, int(trials), int(seed)), trials=len(SEQUENCES[key]))

    assert [list(toy.space.widths_in(plan)) for plan in asked] == SEQUENCES[key]


@pytest.mark.parametrize("name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in LEARNERS)])
class TestSeveralPlansAtOnce:
    """What holds for every searcher; a new one inherits it by standing in the list."""

    def test_the_same_seed_and_the_same_number_ask_the_same_plans(self, name: str) -> None:
        first, again = (driven(name, problem_of(SMOOTH, 10, seed=3), 10, in_flight=3) for _ in range(2))

        assert first == again

    def test_it_asks_no_more_than_its_trials_and_finds_a_plan_within_the_limit(self, name: str) -> None:
        asked = SMOOTH.solve(SEARCHERS[name], 12, seed=0, in_flight=4)

        assert 1 <= len(asked) <= 12
        assert best_feasible(asked) > SMOOTH.evaluation_of(SMOOTH.space.thinnest()).score

    def test_no_plan_waits_twice(self, name: str) -> None:
        """Four groups of nine widths: there are plans enough for everyone"""
        searcher = SEARCHERS[name](problem_of(CHAIN, 12))
        assert searcher is not None
        waiting: list[ChannelPlan] = []
        twice = 0
        for _ in range(10):
            for plan in searcher.ask(4 - len(waiting)):
                twice += plan in waiting
                waiting.append(plan)
            if waiting:
                searcher.tell([CHAIN.evaluation_of(waiting.pop(0))])

        assert twice == 0 or name in ("random", "ppo-lagrangian-faithful")  # these do not look at what they asked

    def test_more_than_one_plan_is_asked_at_once_from_the_start(self, name: str) -> None:
        searcher = SEARCHERS[name](problem_of(SMOOTH, 24))
        assert searcher is not None

        assert len(searcher.ask(4)) > 1 or name in ("greedy", "uniform-top-up")  # each of their first plans needs the last answer


@pytest.mark.parametrize("name", ["chain", "steep"])
def test_a_hill_climber_with_four_plans_at_once_loses_little(name: str) -> None:
    """24 trials. Without neighbours of pending plans, it would reach 63 % and 60 % of the optimum."""
    toy = TOYS[name]
    found = [best_feasible(toy.solve(SEARCHERS["greedy"], 24, seed=0, in_flight=n)) / toy.optimum() for n in (1, 4)]

    assert min(found) > 0.85


def test_the_plans_do_not_depend_on_the_order_in_which_evaluations_end() -> None:
    """Four at once; every second evaluation ends only after the one that was asked after it"""
    ended: list[int] = []
    events = [threading.Event() for _ in range(40)]

    def evaluate(number: int, plan: ChannelPlan) -> Evaluation:
        if number % 2 and number < 23:
            assert events[number + 1].wait(10)
        ended.append(number)
        events[number].set()
        return SMOOTH.evaluation_of(plan)

    asked: list[ChannelPlan] = []
    with ThreadPoolExecutor(4) as pool:

        def submit(number: int, plan: ChannelPlan) -> Callable[[], Evaluation]:
            asked.append(plan)
            return pool.submit(evaluate, number, plan).result

        searcher = SEARCHERS["random"](problem_of(SMOOTH, 24))
        assert searcher is not None
        drive(searcher, submit, trials=24, in_flight=4)

    assert ended != sorted(ended)
    assert asked == [each.plan for each in SMOOTH.solve(SEARCHERS["random"], 24, seed=0, in_flight=4)]


def test_a_question_knows_the_answers_to_all_but_the_plans_in_flight() -> None:
    """Three at once: question k is asked with the answers to 1 ... k - 3"""
    known: list[int] = []

    @ask_and_tell
    def counting(state: SearchState) -> Questions[None]:
        while True:
            known.append(len(state.answers))
            yield state.space.dense()

    searcher = counting(Problem(SMOOTH.space, SMOOTH.evaluation_of, 8, constraints=1, seed=0))
    drive(searcher, lambda number, plan: lambda: SMOOTH.evaluation_of(plan), trials=8, in_flight=3)

    assert known == [0, 0, 0, 1, 2, 3, 4, 5]


def test_a_searcher_that_needs_all_answers_gets_them_before_it_goes_on() -> None:
    known: list[int] = []

    @ask_and_tell
    def in_pairs(state: SearchState) -> Questions[None]:
        for _ in range(3):
            known.append(len(state.answers))
            yield state.space.dense()
            yield state.space.thinnest()
            yield WAIT

    searcher = in_pairs(Problem(SMOOTH.space, SMOOTH.evaluation_of, 8, constraints=1, seed=0))
    drive(searcher, lambda number, plan: lambda: SMOOTH.evaluation_of(plan), trials=8, in_flight=4)

    assert known == [0, 2, 4]


def test_plans_of_the_design_are_asked_while_the_start_is_not_known() -> None:
    """Twelve at once: six uniform plans, and six around the share where cost = limit, by a straight line between the ends"""
    searcher = SEARCHERS["knapsack"](problem_of(SMOOTH, 60))
    assert searcher is not None
    asked = [dict(plan) for plan in searcher.ask(12)]

    assert [len(set(plan.values())) for plan in asked[:6]] == [1] * 6
    assert len(asked) == 12
    assert all(0.1 * 64 <= width <= 0.9 * 64 for plan in asked[6:] for width in plan.values())


def test_an_answer_out_of_order_is_refused() -> None:
    searcher = SEARCHERS["random"](problem_of(SMOOTH, 4))
    assert searcher is not None
    _, second = searcher.ask(2)

    with pytest.raises(ValueError, match="in the order in which plans were asked"):
        searcher.tell([SMOOTH.evaluation_of(second)])
