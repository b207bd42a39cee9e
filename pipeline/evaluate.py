"""Evaluator: the black box. A plan goes in; it is made, measured, scored, written down, and judged."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import nn

from pipeline.budget import judge
from pipeline.candidate import Candidate
from pipeline.case import Case
from pipeline.cores import compute_threads, confined
from pipeline.decide import candidate_of, measure_decisively
from pipeline.errors import BudgetError, ModelError, ProbeError, RunError, UnreachableBudget
from pipeline.finalists import Confirmed, Finalist, best_that_holds
from pipeline.graph.drafts import Draft
from pipeline.handover import graph_of
from pipeline.inherit import Inheritance
from pipeline.measurement import Failure, Measurement
from pipeline.plan import ChannelPlan
from pipeline.probe.base import Effort, Probe
from pipeline.profile import available_cores
from pipeline.reward import finite, start_rewarding
from pipeline.run import Role, Trial
from pipeline.search.problem import Assessment, Problem, Reward, SearchSpace, TrialsSpent
from pipeline.search.uniform import bisect
from pipeline.statistics import Estimate

__all__ = ["Evaluator"]

BISECTIONS = 5
"""Uniform plans that are measured to find where the budget lies."""


class Evaluator:
    """Judges plans for a searcher; every judgement is in the journal before it is answered.

    A searcher has one thread to think with; a candidate is scored with as many as torch had when this was made.
    """

    def __init__(self, case: Case, inherit: Inheritance, probe: Probe, trials: int, reward: Reward = "accuracy") -> None:
        self._run, self._drafts, self._task, self._watcher = case.run, case.drafts, case.task, case.watcher
        self._inherit, self._probe, self._settings = inherit, probe, case.profile.probe
        self._searched = tuple(constraint for constraint in case.constraints if not constraint.metric.after_finetuning)
        self._effort = Effort(self._settings.processes, any(c.metric.needs_memory for c in self._searched), fresh=False)
        self._trials = trials
        self._rewarding = start_rewarding(reward, case.drafts, case.task)
        self._count = 0
        self._threads = torch.get_num_threads()
        self._best: Candidate | None = None
        self._lowest_reward = 0.0
        self.notices: list[str] = []
        self.dense: Candidate
        self.thinnest: Candidate

    @property
    def constraint_count(self) -> int:
        """How many overruns an assessment has."""
        return len(self._searched)

    @property
    def ends(self) -> tuple[Assessment, Assessment]:
        """How the dense and the thinnest plan are judged, once they are measured."""
        return self.assess(self.dense), self.assess(self.thinnest)

    def measure_ends(self, space: SearchSpace) -> None:
        """Measure the whole network and the thinnest plan: between them lies everything that can be had.

        Raises UnreachableBudget when even the thinnest misses, ProbeError when the whole network cannot be measured, ModelError
        when its score is no number, BudgetError when a limit cannot be judged from the runs that the profile allows.
        """
        self.dense = self._candidate(space.dense(), "dense", 1)
        if self.dense.failure:
            raise ProbeError(f"the dense network cannot be measured: {self.dense.failure.kind}: {self.dense.failure.detail}")
        if self.dense.score is None:
            raise ModelError(
                "the dense network's score is no finite number: look at what `evaluate` returns for it, then choose another out, "
                f"because {self._run.folder} remembers it"
            )
        for constraint in self._searched:
            if constraint.figure(self.dense, self.dense) is None:
                raise BudgetError(
                    f"budget: {constraint.text} cannot be judged here: the figure is not available; a p90 needs 64 runs "
                    "(probe.runs x probe.processes, within probe.time_limit_s), memory needs a Linux system"
                )
        thinnest = self._candidate(space.thinnest(), "uniform", 1)
        for constraint in self._searched:
            figure = constraint.figure(thinnest, self.dense)
            if figure and constraint.verdict(thinnest, self.dense) == "over":
                kind = f"{constraint.metric.title}{', of dense' if constraint.relative else ''}"
                raise UnreachableBudget(
                    f"at minimum width this model takes {constraint.show(figure.value)} ({kind}); "
                    f"the budget is {constraint.show(constraint.limit)}; allow more, or start from a smaller network"
                )

    def widest_uniform(self, space: SearchSpace) -> float:
        """The largest share of its channels that every group can keep within the budget, measured by bisection."""
        numbers = itertools.count(2)  # the first uniform plan was the thinnest

        def evaluate(plan: ChannelPlan) -> Assessment:
            return self.assess(self._candidate(plan, "uniform", next(numbers)))

        return bisect(Problem(space, evaluate, BISECTIONS, self.constraint_count, seed=0), BISECTIONS)

    def score_thinnest(self, space: SearchSpace) -> None:
        """To be called once it is settled with which weights plans are scored."""
        self.thinnest = self._candidate(space.thinnest(), "thinnest", 1)
        self._lowest_reward = min(0.0, *(self._rewarding.worth(end) or 0.0 for end in (self.dense, self.thinnest)))
        self._tell_ends()

    def _tell_ends(self) -> None:
        for name, candidate in (("dense", self.dense), ("thinnest", self.thinnest)):
            figures = (f"{c.metric.title} {c.show(f.value)}" for c in self._searched if (f := c.figure(candidate, self.dense)))
            p50 = f"{candidate.measurement.latency_p50_ms.value:.3f} ms, " if candidate.measurement else ""
            self._watcher.say(f"{name}: {p50}{', '.join(figures)}, score {candidate.score or 0:.2f}")
        measured = self.dense.measurement
        if measured and measured.remarks:
            told = "; ".join(remark.text for remark in measured.remarks)
            advice = dict.fromkeys(remark.advice for remark in measured.doubts)
            effect = f"verdicts may stay undecided ({', '.join(advice)})" if advice else "intervals will be wide"
            notice = f"the machine that measures is not quiet: {told}: {effect}"
            self.notices.append(notice)
            self._watcher.notice(notice)

    def __call__(self, plan: ChannelPlan) -> Assessment:
        """One trial of the search; raises TrialsSpent when there are none left."""
        if self._count >= self._trials:
            raise TrialsSpent
        self._count += 1
        with compute_threads(self._threads):
            candidate = self._candidate(plan, "search", self._count)
        assessment = self.assess(candidate)
        if assessment.feasible and (self._best is None or assessment.score > self._reward(self._best)):
            self._best = candidate
        verdict = judge(self._searched, candidate, self.dense)
        self._watcher.trial(self._count, self._trials, candidate, self.dense, verdict, self._best)
        return assessment

    def assess(self, candidate: Candidate) -> Assessment:
        """The overruns at the careful end of their intervals; a failed candidate is twice over every limit."""
        overruns = tuple(overrun.high for overrun in self._overruns(candidate))
        return Assessment(candidate.plan, self._reward(candidate), overruns)

    def _overruns(self, candidate: Candidate) -> list[Estimate]:
        """One per limit that is searched for; twice over where `candidate` failed or the figure is not known."""
        found = (None if candidate.failure else constraint.overrun(candidate, self.dense) for constraint in self._searched)
        return [overrun or Estimate.exact(1.0) for overrun in found]

    def _reward(self, candidate: Candidate) -> float:
        worth = self._rewarding.worth(candidate)
        return self._lowest_reward if worth is None else worth

    def searched(self) -> tuple[list[Trial], list[Assessment]]:
        """The trials of the search in order, and how they are judged."""
        trials = [trial for trial in self._run.trials if trial.role == "search"]
        return trials, [self.assess(trial.candidate) for trial in trials]

    def dense_on(self, probe: Probe) -> Candidate:
        """The whole network, measured by another probe. Raises ProbeError when that fails."""
        draft = self._drafts.make(self.dense.plan)
        measured = measure_decisively(probe, draft, self._settings.final_processes, (), self.dense)
        if isinstance(measured, Failure):
            raise ProbeError(f"the dense network cannot be measured: {measured.kind}: {measured.detail}")
        return replace(self.dense, measurement=measured)

    def confirm(self) -> Candidate:
        """The best plan that holds when it is measured again, in fresh processes; see `best_that_holds`.

        When none of those that were tried holds, the thinnest plan is returned: it was within, or undecided, at the start.
        """
        numbers = itertools.count(1)

        def again(finalist: Finalist) -> Confirmed:
            confirmed = self._finalist(finalist.candidate, next(numbers))
            used = () if confirmed.failure else tuple(1 + overrun.high for overrun in self._overruns(confirmed))
            return Confirmed(confirmed, judge(self._searched, confirmed, self.dense) == "within", used)

        best = best_that_holds(self._ranked(), again)
        if best is None:
            return self._finalist(self.thinnest, next(numbers))
        if next(numbers) > 2:
            self._watcher.say(f"taken: score {best.candidate.score or 0:.2f}")
        return best.candidate

    def _ranked(self) -> list[Finalist]:
        """The plans that were feasible when they were searched, best first, of equals the one with more room."""
        seen: dict[ChannelPlan, Candidate] = {}
        for trial in self._run.trials:
            if trial.role in ("dense", "thinnest", "search") and self.assess(trial.candidate).feasible:
                seen.setdefault(trial.candidate.plan, trial.candidate)
        ranked = sorted(seen.values(), key=lambda c: (-self._reward(c), max(self.assess(c).overruns, default=0.0)))
        return [Finalist(each, self._reward(each), self._used(each)) for each in ranked]

    def _used(self, candidate: Candidate) -> tuple[float, ...]:
        """The share of each limit that `candidate` takes, above 0."""
        return tuple(max(1 + overrun.value, 1e-9) for overrun in self._overruns(candidate))

    def _finalist(self, candidate: Candidate, number: int) -> Candidate:
        confirmed = self._candidate(candidate.plan, "finalist", number)
        told = [f"score {candidate.score or 0:.2f}: {judge(self._searched, confirmed, self.dense)}"]
        for constraint in self._searched:
            then, now = (constraint.figure(each, self.dense) for each in (candidate, confirmed))
            if then and now and now.low > then.high:
                told.append(
                    f"{constraint.metric.title} {constraint.show(now.value)}, in the search {constraint.show(then.value)}"
                )
        self._watcher.say("; ".join(told))
        return confirmed

    def _known(self, plan: ChannelPlan, role: Role, number: int) -> Trial | None:
        """What an earlier process found; raises RunError where it asked about another plan."""
        known = self._run.find(role, number)
        if known is not None and known.candidate.plan != plan:
            raise RunError(
                f"{self._run.folder}: {role} trial {number} was another plan, so this search is not the one that was "
                "interrupted (did the software change?); choose another --out"
            )
        return known

    def _candidate(self, plan: ChannelPlan, role: Role, number: int) -> Candidate:
        known = self._known(plan, role, number)
        if known is not None:
            return known.candidate
        started = time.monotonic()
        draft = self._drafts.make(plan)
        if role == "finalist":
            measured = measure_decisively(
                self._probe, draft, self._settings.final_processes, self._searched, self.dense, twice=True
            )
            scored = (trial.candidate for trial in reversed(self._run.trials) if trial.role != "uniform")
            searched = next(candidate for candidate in scored if candidate.plan == plan)
            candidate = candidate_of(draft, measured, searched.score).with_activations_of(searched)
        elif role == "uniform":
            # the first is the thinnest plan, whose memory is reported
            effort = replace(self._effort, memory=self._effort.memory or number == 1)
            candidate = candidate_of(draft, self._probe.measure(graph_of(draft), effort), None)
        elif role == "thinnest" and (first := self._run.find("uniform", 1)):
            module = self._inherit(plan)
            score = None if first.candidate.failure else finite(self._task.score(module))
            candidate = self._rewarding.look(replace(first.candidate, score=score), module)
        else:
            effort = replace(self._effort, memory=self._effort.memory or role == "dense")
            module = self._inherit(plan)
            candidate = self._rewarding.look(candidate_of(draft, *self._measure_and_score(draft, module, effort)), module)
        self._run.record(Trial(role, number, candidate, round(time.monotonic() - started, 3)))
        return candidate

    def _measure_and_score(self, draft: Draft, module: nn.Module, effort: Effort) -> tuple[Measurement | Failure, float | None]:
        """Both halves; the score is computed on the cores that no timed run uses, or after the runs where there are none."""
        busy = set(self._probe.busy_cores)
        free = [core for core in available_cores() if core not in busy]
        if not free:
            measured = self._probe.measure(graph_of(draft), effort)
            return measured, None if isinstance(measured, Failure) else finite(self._task.score(module))
        with ThreadPoolExecutor(1) as pool, confined(free) as release:
            measuring = pool.submit(self._probe.measure, graph_of(draft), effort)
            score = self._task.score(module, between=lambda: release() if measuring.done() else None)
            return measuring.result(), finite(score)
