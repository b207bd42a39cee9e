"""Several trials at once: who scores, who measures, what the journal has, and how a run resumes."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.analysed import builder_of
from helpers.candidates import candidate
from helpers.graphs import profile
from helpers.nets import EXAMPLE, Chain
from helpers.workers import gone, until
from torch import nn

from pipeline.core.budget import Budget, all_constraints, read_limit
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import available_cores
from pipeline.core.progress import Notices, NullCallback
from pipeline.core.run import open_run, read_trials
from pipeline.errors import DeviceUnreachable, RunError, TrainingError
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Workload
from pipeline.probe.pool import Board, PoolProbe
from pipeline.probe.simulated import SimulatedProbe
from pipeline.search.searchers import SEARCHERS
from pipeline.search.several_budgets import several_budgets
from pipeline.stages.context import Provenance, RunContext
from pipeline.stages.dense_and_thinnest import measure_dense_and_thinnest, score_thinnest
from pipeline.stages.evaluate import Evaluator, places_of
from pipeline.stages.initial_weights import cut_from_dense
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.stages.parallel_trials import free_cores, run_search, worker_count
from pipeline.stages.probe_adapter import reference_of
from pipeline.stages.reward import RewardFunction
from pipeline.stages.score_workers import ScoreWorkers
from pipeline.stages.search_space import search_space
from pipeline.training.own_task import OwnTask
from pipeline.training.scoring import Score

TRIALS = 9
PLANS = [ChannelPlan.of({"conv": width}) for width in range(1, 9)]


def scored(plan: ChannelPlan) -> Candidate:
    """The process that scores a plan is its number of parameters."""
    return candidate(measured=False, params=os.getpid(), score=float(plan["conv"]))


# ---------------------------------------------------------------- processes that score


def test_plans_are_scored_in_other_processes_at_the_same_time() -> None:
    """Both processes have a plan at the same time, or the barrier would break"""
    from multiprocessing import get_context

    barrier = get_context("fork").Barrier(2)

    def score(plan: ChannelPlan, to_beat: float | None) -> Candidate:
        barrier.wait(30)
        return scored(plan)

    with ScoreWorkers(score, 2, available_cores()) as workers:
        found: list[Candidate] = []
        threads = [threading.Thread(target=lambda plan=plan: found.append(workers.score(plan))) for plan in PLANS[:2]]  # type: ignore[misc]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert {each.params for each in found} == set(workers.processes)
    assert sorted(each.score or 0 for each in found) == [1.0, 2.0]
    assert gone(workers.processes)


def test_a_worker_that_dies_is_replaced_and_its_plan_is_scored_once_more(tmp_path: Path) -> None:
    first = tmp_path / "killed"

    def score(plan: ChannelPlan, to_beat: float | None) -> Candidate:
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return scored(plan)

    with ScoreWorkers(score, 1, ()) as workers:
        before = workers.processes
        found = workers.score(PLANS[2])
        after = workers.processes

    assert found.score == 3.0
    assert before != after == (found.params,)


def test_a_plan_that_kills_every_worker_ends_the_run_and_leaves_a_worker_for_the_others() -> None:
    def score(plan: ChannelPlan, to_beat: float | None) -> Candidate:
        if plan == PLANS[0]:
            os._exit(7)
        return scored(plan)

    with ScoreWorkers(score, 1, ()) as workers:
        with pytest.raises(RunError, match="ended 3 times with the same plan \\(exit status 7\\)"):
            workers.score(PLANS[0])
        assert workers.score(PLANS[1]).score == 2.0


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (TrainingError("no labels; give some"), TrainingError, "no labels"),
        (KeyError("x"), RunError, "scoring a plan failed: KeyError: 'x'"),
    ],
)
def test_an_error_in_a_worker_is_an_error_here(raised: Exception, expected: type[Exception], text: str) -> None:
    def score(plan: ChannelPlan, to_beat: float | None) -> Candidate:
        raise raised

    with ScoreWorkers(score, 1, ()) as workers, pytest.raises(expected, match=text):
        workers.score(PLANS[0])


# ---------------------------------------------------------------- whole searches


class Waiting(SimulatedProbe):
    """A simulated board that calls a function before it measures."""

    before: Callable[[], object] = staticmethod(lambda: None)

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        self.before()
        return super().measure(graph, options, load)


def evaluate(module: nn.Module) -> float:
    """More weight is better, with small steps, so that no two plans are level."""
    return 50.0 + float(sum(parameter.detach().abs().sum() for parameter in module.parameters())) % 40


def in_search() -> bool:
    """Whether this thread measures for the search, and not for the dense or the thinnest plan."""
    return threading.current_thread().name.startswith("measure")


def boards(count: int) -> dict[str, Waiting]:
    reference = reference_of(builder_of(Chain))
    return {f"board{number}": Waiting(profile(), reference) for number in range(count)}


def pool(probes: dict[str, Waiting]) -> PoolProbe:
    each = [Board(name, probe, lambda: None) for name, probe in probes.items()]
    return PoolProbe(each, every_board=False, patience_s=10.0, notify=lambda text: None)


class Stopping(OwnTask):
    """A task whose number of scored images says which score was to beat, in thousandths."""

    def score_against(self, module: nn.Module, to_beat: float | None, between: Callable[[], None] = lambda: None) -> Score:
        return Score(self.score(module, between), None if to_beat is None else round(1000 * to_beat))


@contextmanager
def evaluator(
    folder: Path,
    probe: Probe,
    budgets: tuple[Budget, ...] = (),
    kind: type[OwnTask] = OwnTask,
    limit: str = "60 %",
) -> Iterator[tuple[Evaluator, list[str]]]:
    """x -> conv (8) -> conv (12) -> mean -> linear(5), a share of its simulated latency, and a score from its weights."""
    builder, notices = builder_of(Chain), Notices(NullCallback())
    task = kind(torch.cat([EXAMPLE, EXAMPLE]), evaluate, lambda module: module)
    with open_run(folder, {"job": "test"}) as run:
        limits = all_constraints(budgets) or (read_limit("latency_p50", limit),)
        context = RunContext(run, builder, task, profile(), limits, NullCallback(), notices, Provenance((), {}, "chain"))
        measurer = PlanMeasurer(context, probe, RewardFunction("accuracy", builder, None, None))
        weights = cut_from_dense(context)
        ends = score_thinnest(measurer, measure_dense_and_thinnest(measurer, search_space(builder, 1), weights), weights)
        yield Evaluator(measurer, ends, weights, TRIALS, budgets, threads=1), notices.texts  # type: ignore[misc]


def searched(folder: Path, probe: Probe, workers: int | None = 2, name: str = "random") -> list[tuple[int, ChannelPlan]]:
    """The numbers and plans in the journal after a search."""
    with evaluator(folder, probe) as (evaluating, _):
        problem = evaluating.problem(search_space(builder_of(Chain), 1), seed=5)
        run_search(SEARCHERS[name], evaluating, problem, workers)
    return [(trial.number, trial.candidate.plan) for trial in read_trials(folder) if trial.role == "search"]


def test_several_at_once_ask_the_same_plans_whichever_board_is_slow(tmp_path: Path) -> None:
    """TPE believes pending plans; one of two boards ends its second plan only after the other has ended its fourth"""
    alike = boards(2)
    first = searched(tmp_path / "alike", pool(alike), name="tpe")
    uneven, fast = boards(2), [0]
    uneven["board1"].before = lambda: fast.append(0)  # type: ignore[method-assign]
    uneven["board0"].before = lambda: in_search() and until(lambda: len(fast) > 4, 2.0)  # type: ignore[method-assign]
    second = searched(tmp_path / "uneven", pool(uneven), name="tpe")

    assert first == second
    assert [number for number, _ in first] == list(range(1, TRIALS + 1))


def test_a_clear_loser_stops_early_against_the_answers_that_were_told_when_its_plan_was_asked(tmp_path: Path) -> None:
    """Two boards, so four plans at once: plan k is asked after the answers to the plans 1 to k - 4, whichever board is slow."""
    uneven, fast = boards(2), [0]
    uneven["board1"].before = lambda: fast.append(0)  # type: ignore[method-assign]
    uneven["board0"].before = lambda: in_search() and until(lambda: len(fast) > 4, 2.0)  # type: ignore[method-assign]
    with evaluator(tmp_path, pool(uneven), kind=Stopping, limit="98 %") as (evaluating, _):
        run_search(SEARCHERS["random"], evaluating, evaluating.problem(search_space(builder_of(Chain), 1), seed=5), 2)
        trials = {trial.number: trial.candidate for trial in read_trials(tmp_path) if trial.role == "search"}
        good = {number: each.score for number, each in trials.items() if evaluating.evaluation_of(each).feasible}
    expected = {
        number: max((round(1000 * (score or 0)) for other, score in good.items() if other <= number - 4), default=None)
        for number in trials
    }

    assert {number: each.scored_images for number, each in trials.items()} == expected
    assert any(expected.values())


def test_every_board_takes_part_and_every_trial_is_scored(tmp_path: Path) -> None:
    probes = boards(2)
    meeting = threading.Barrier(2)
    meetings = iter([True, True])
    for probe in probes.values():
        probe.before = lambda: in_search() and next(meetings, False) and meeting.wait(30)  # type: ignore[method-assign]
    with evaluator(tmp_path, pool(probes)) as (evaluating, _):
        run_search(SEARCHERS["random"], evaluating, evaluating.problem(search_space(builder_of(Chain), 1), seed=5), 2)
    trials = [trial for trial in read_trials(tmp_path) if trial.role == "search"]

    assert {trial.candidate.measurement.board for trial in trials if trial.candidate.measurement} == {"board0", "board1"}
    assert all(trial.candidate.score is not None for trial in trials)


def test_a_resumed_search_asks_only_for_what_is_missing_and_ends_alike(tmp_path: Path) -> None:
    """The journal of a killed run: trial 3 was recorded late, so that it is missing although 4 and 5 are there"""
    whole = searched(tmp_path, pool(boards(2)))
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lost = [b'"number":%d,' % number for number in (3, 6, 7, 8, 9)]
    kept = [line for line in lines if b'"role":"search"' not in line or not any(number in line for number in lost)]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(kept))
    probes, measured = boards(2), []
    for probe in probes.values():
        probe.before = lambda: measured.append(1)  # type: ignore[method-assign]

    assert searched(tmp_path, pool(probes)) == whole
    assert len(measured) == 5


def test_a_resumed_search_keeps_the_number_of_plans_at_once(tmp_path: Path) -> None:
    """begun with 2 boards, so 4 plans at once; continued on one board with one worker"""
    whole = searched(tmp_path, pool(boards(2)), name="tpe")
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(b"".join(line for line in journal.read_bytes().splitlines(keepends=True) if b'"number":9,' not in line))

    assert searched(tmp_path, boards(1)["board0"], workers=None, name="tpe") == whole


def test_a_board_that_is_lost_costs_no_trial(tmp_path: Path) -> None:
    probes = boards(2)
    failures = iter([True])

    def lost() -> None:
        if in_search() and next(failures, False):
            raise DeviceUnreachable("no route to host")

    probes["board0"].before = lost  # type: ignore[method-assign]

    assert [number for number, _ in searched(tmp_path, pool(probes))] == list(range(1, TRIALS + 1))


def test_an_error_of_one_trial_ends_the_search_and_keeps_the_others(tmp_path: Path) -> None:
    probes = boards(2)
    calls = iter(range(100))

    def failing() -> None:
        if in_search() and next(calls) == 3:
            raise MemoryError("nothing is left")

    for probe in probes.values():
        probe.before = failing  # type: ignore[method-assign]

    with pytest.raises(MemoryError):
        searched(tmp_path, pool(probes))
    assert len([trial for trial in read_trials(tmp_path) if trial.role == "search"]) >= 1


def test_one_board_and_one_worker_evaluate_one_plan_at_a_time(tmp_path: Path) -> None:
    """as before: nothing about it is in the journal"""
    searched(tmp_path, boards(1)["board0"], workers=None)

    assert b'"kind":"search"' not in (tmp_path / "journal.jsonl").read_bytes()


def test_the_number_of_workers_follows_boards_and_cores() -> None:
    alone, three = boards(1)["board0"], pool(boards(3))

    assert [worker_count(None, alone, 8), worker_count("auto", alone, 8), worker_count(3, alone, 8)] == [1, 8, 3]
    assert [worker_count(None, three, 2), worker_count(None, three, 64), worker_count(1, three, 64)] == [2, 6, 1]
    assert free_cores(alone) == available_cores()


# ---------------------------------------------------------------- several budgets

BUDGETS = tuple(Budget((read_limit("params", text),), "params") for text in ("70 %", "45 %"))


@pytest.mark.parametrize("board_count", [1, 2])
def test_a_search_for_two_budgets_resumes_from_its_journal(tmp_path: Path, board_count: int) -> None:
    """With two boards, four plans are in evaluation at once. The last trials were lost with the process"""

    def together() -> list[tuple[int, ChannelPlan]]:
        probes = boards(board_count)
        probe = pool(probes) if board_count > 1 else probes["board0"]
        with evaluator(tmp_path, probe, BUDGETS) as (evaluating, _):
            context = evaluating.measurer.context
            search = several_budgets(SEARCHERS["uniform-top-up"], places_of(BUDGETS, context.searched_constraints))
            run_search(search, evaluating, evaluating.problem(search_space(builder_of(Chain), 1), seed=5), None)
        return [(trial.number, trial.candidate.plan) for trial in read_trials(tmp_path) if trial.role == "search"]

    whole, journal = together(), tmp_path / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if not any(b'"number":%d,' % number in line for number in (7, 8, 9))))

    assert together() == whole
    assert len({plan for _, plan in whole}) == len(whole) > 6


def test_a_plan_is_scored_roughly_only_if_it_clearly_loses_under_every_budget(tmp_path: Path) -> None:
    """The wide plan is within 70 % only, and the thin plan is within both"""
    space = search_space(builder_of(Chain), 1)
    with evaluator(tmp_path, boards(1)["board0"], BUDGETS) as (evaluating, _):
        wide, thin = (
            evaluating.measurer.trial(space.uniform(share), number, evaluating.weights)
            for number, share in ((1, 0.75), (2, 0.25))
        )
        before = evaluating.to_beat()
        evaluating.told(1, replace(wide, score=90.0))
        only_one = evaluating.to_beat()
        evaluating.told(2, replace(thin, score=70.0))

        assert (before, only_one, evaluating.to_beat()) == (None, None, 70.0)


def test_what_follows_the_search_sees_the_limits_and_the_notices_of_its_budget_alone(tmp_path: Path) -> None:
    with evaluator(tmp_path, boards(1)["board0"], BUDGETS) as (evaluating, _):
        context = evaluating.measurer.context
        context.notices.add("of all budgets")
        first, second = (evaluating.for_budget(context.for_budget(budget, n)) for n, budget in enumerate(BUDGETS))
        first.measurer.context.notices.add("of the first")
        evaluation = second.evaluation_of(evaluating.ends.dense)

        assert second.measurer.context.constraints == BUDGETS[1].constraints
        assert len(evaluation.violations) == 1
        assert second.measurer.context.notices.texts == ("of all budgets",)
        assert second.measurer.context.provenance.job["budget"] == {"params": "45.0 %"}
        assert second.weights.context is second.measurer.context
