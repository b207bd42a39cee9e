"""Evaluator: the black box. A plan goes in; it is made, measured, scored, written down, and judged."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import nn

from pipeline.core.budget import judge
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import available_cores
from pipeline.core.run import Role, Trial
from pipeline.core.statistics import Estimate
from pipeline.errors import BudgetError, ModelError, ProbeError, RunError, UnreachableBudget
from pipeline.graph.pruned_model import PrunedModel
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.search.problem import Evaluation, Problem, Reward, SearchSpace, TrialsSpent
from pipeline.search.uniform import bisect
from pipeline.stages.context import RunContext
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.reevaluate import Finalist, Reevaluated, best_confirmed
from pipeline.stages.reward import finite, start_reward_function
from pipeline.stages.sequential_measurement import candidate_of, measure_sequentially
from pipeline.training.threads import compute_threads, confined

__all__ = ["Evaluator"]

BISECTIONS = 5
"""Uniform plans that are measured to find where the budget lies."""


class Evaluator:
    """Judges plans for a searcher; every judgement is in the journal before it is answered.

    A searcher has one thread to think with; a candidate is scored with as many as torch had when this was made.
    """

    def __init__(
        self, context: RunContext, initial_weights: InitialWeights, probe: Probe, trials: int, reward: Reward = "accuracy"
    ) -> None:
        self._run, self._drafts, self._task, self._callback = context.run, context.builder, context.task, context.callback
        self._initial_weights, self._probe, self._settings = initial_weights, probe, context.profile.probe
        self._searched = tuple(constraint for constraint in context.constraints if not constraint.metric.after_finetuning)
        self._options = MeasurementOptions(
            self._settings.processes, any(c.metric.needs_memory for c in self._searched), fresh=False
        )
        self._trials = trials
        self._reward_function = start_reward_function(reward, context.builder, context.task)
        self._count = 0
        self._threads = torch.get_num_threads()
        self._best: Candidate | None = None
        self._lowest_reward = 0.0
        self.notices: list[str] = []
        self.dense: Candidate
        self.thinnest: Candidate

    @property
    def constraint_count(self) -> int:
        """How many violations an assessment has."""
        return len(self._searched)

    @property
    def ends(self) -> tuple[Evaluation, Evaluation]:
        """How the dense and the thinnest plan are judged, once they are measured."""
        return self.evaluation_of(self.dense), self.evaluation_of(self.thinnest)

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

        def evaluate(plan: ChannelPlan) -> Evaluation:
            return self.evaluation_of(self._candidate(plan, "uniform", next(numbers)))

        return bisect(Problem(space, evaluate, BISECTIONS, self.constraint_count, seed=0), BISECTIONS)

    def score_thinnest(self, space: SearchSpace) -> None:
        """To be called once it is settled with which weights plans are scored."""
        self.thinnest = self._candidate(space.thinnest(), "thinnest", 1)
        self._lowest_reward = min(0.0, *(self._reward_function.reward_of(end) or 0.0 for end in (self.dense, self.thinnest)))
        self._tell_ends()

    def _tell_ends(self) -> None:
        for name, candidate in (("dense", self.dense), ("thinnest", self.thinnest)):
            figures = (f"{c.metric.title} {c.show(f.value)}" for c in self._searched if (f := c.figure(candidate, self.dense)))
            p50 = f"{candidate.measurement.latency_p50_ms.value:.3f} ms, " if candidate.measurement else ""
            self._callback.say(f"{name}: {p50}{', '.join(figures)}, score {candidate.score or 0:.2f}")
        measured = self.dense.measurement
        if measured and measured.remarks:
            told = "; ".join(remark.text for remark in measured.remarks)
            advice = dict.fromkeys(remark.advice for remark in measured.doubts)
            effect = f"verdicts may stay undecided ({', '.join(advice)})" if advice else "intervals will be wide"
            notice = f"the machine that measures is not quiet: {told}: {effect}"
            self.notices.append(notice)
            self._callback.notice(notice)

    def __call__(self, plan: ChannelPlan) -> Evaluation:
        """One trial of the search; raises TrialsSpent when there are none left."""
        if self._count >= self._trials:
            raise TrialsSpent
        self._count += 1
        with compute_threads(self._threads):
            candidate = self._candidate(plan, "search", self._count)
        evaluation = self.evaluation_of(candidate)
        if evaluation.feasible and (self._best is None or evaluation.score > self._reward(self._best)):
            self._best = candidate
        verdict = judge(self._searched, candidate, self.dense)
        self._callback.trial(self._count, self._trials, candidate, self.dense, verdict, self._best)
        return evaluation

    def evaluation_of(self, candidate: Candidate) -> Evaluation:
        """The violations at the careful end of their intervals; a failed candidate is twice over every limit."""
        violations = tuple(violation.high for violation in self._violations(candidate))
        return Evaluation(candidate.plan, self._reward(candidate), violations)

    def _violations(self, candidate: Candidate) -> list[Estimate]:
        """One per limit that is searched for; twice over where `candidate` failed or the figure is not known."""
        found = (None if candidate.failure else constraint.violation(candidate, self.dense) for constraint in self._searched)
        return [violation or Estimate.exact(1.0) for violation in found]

    def _reward(self, candidate: Candidate) -> float:
        reward_of = self._reward_function.reward_of(candidate)
        return self._lowest_reward if reward_of is None else reward_of

    def searched(self) -> tuple[list[Trial], list[Evaluation]]:
        """The trials of the search in order, and how they are judged."""
        trials = [trial for trial in self._run.trials if trial.role == "search"]
        return trials, [self.evaluation_of(trial.candidate) for trial in trials]

    def dense_on(self, probe: Probe) -> Candidate:
        """The whole network, measured by another probe. Raises ProbeError when that fails."""
        pruned = self._drafts.make(self.dense.plan)
        measured = measure_sequentially(probe, pruned, self._settings.final_processes, (), self.dense)
        if isinstance(measured, Failure):
            raise ProbeError(f"the dense network cannot be measured: {measured.kind}: {measured.detail}")
        return replace(self.dense, measurement=measured)

    def confirm(self) -> Candidate:
        """The best plan that holds when it is measured again, in fresh processes; see `best_that_holds`.

        When none of those that were tried holds, the thinnest plan is returned: it was within, or undecided, at the start.
        """
        numbers = itertools.count(1)

        def again(finalist: Finalist) -> Reevaluated:
            confirmed = self._finalist(finalist.candidate, next(numbers))
            used = () if confirmed.failure else tuple(1 + violation.high for violation in self._violations(confirmed))
            return Reevaluated(confirmed, judge(self._searched, confirmed, self.dense) == "within", used)

        best = best_confirmed(self._ranked(), again)
        if best is None:
            return self._finalist(self.thinnest, next(numbers))
        if next(numbers) > 2:
            self._callback.say(f"taken: score {best.candidate.score or 0:.2f}")
        return best.candidate

    def _ranked(self) -> list[Finalist]:
        """The plans that were feasible when they were searched, best first, of equals the one with more room."""
        seen: dict[ChannelPlan, Candidate] = {}
        for trial in self._run.trials:
            if trial.role in ("dense", "thinnest", "search") and self.evaluation_of(trial.candidate).feasible:
                seen.setdefault(trial.candidate.plan, trial.candidate)
        ranked = sorted(seen.values(), key=lambda c: (-self._reward(c), max(self.evaluation_of(c).violations, default=0.0)))
        return [Finalist(each, self._reward(each), self._used(each)) for each in ranked]

    def _used(self, candidate: Candidate) -> tuple[float, ...]:
        """The share of each limit that `candidate` takes, above 0."""
        return tuple(max(1 + violation.value, 1e-9) for violation in self._violations(candidate))

    def _finalist(self, candidate: Candidate, number: int) -> Candidate:
        confirmed = self._candidate(candidate.plan, "finalist", number)
        told = [f"score {candidate.score or 0:.2f}: {judge(self._searched, confirmed, self.dense)}"]
        for constraint in self._searched:
            then, now = (constraint.figure(each, self.dense) for each in (candidate, confirmed))
            if then and now and now.low > then.high:
                told.append(
                    f"{constraint.metric.title} {constraint.show(now.value)}, in the search {constraint.show(then.value)}"
                )
        self._callback.say("; ".join(told))
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
        pruned = self._drafts.make(plan)
        if role == "finalist":
            measured = measure_sequentially(
                self._probe, pruned, self._settings.final_processes, self._searched, self.dense, twice=True
            )
            scored = (trial.candidate for trial in reversed(self._run.trials) if trial.role != "uniform")
            searched = next(candidate for candidate in scored if candidate.plan == plan)
            candidate = candidate_of(pruned, measured, searched.score).with_activations_of(searched)
        elif role == "uniform":
            # the first is the thinnest plan, whose memory is reported
            options = replace(self._options, memory=self._options.memory or number == 1)
            candidate = candidate_of(pruned, self._probe.measure(graph_of(pruned), options), None)
        elif role == "thinnest" and (first := self._run.find("uniform", 1)):
            module = self._initial_weights(plan)
            score = None if first.candidate.failure else finite(self._task.score(module))
            candidate = self._reward_function.look(replace(first.candidate, score=score), module)
        else:
            options = replace(self._options, memory=self._options.memory or role == "dense")
            module = self._initial_weights(plan)
            candidate = self._reward_function.look(
                candidate_of(pruned, *self._measure_and_score(pruned, module, options)), module
            )
        self._run.record(Trial(role, number, candidate, round(time.monotonic() - started, 3)))
        return candidate

    def _measure_and_score(
        self, pruned: PrunedModel, module: nn.Module, options: MeasurementOptions
    ) -> tuple[Measurement | Failure, float | None]:
        """Both halves; the score is computed on the cores that no timed run uses, or after the runs where there are none."""
        busy = set(self._probe.busy_cores)
        free = [core for core in available_cores() if core not in busy]
        if not free:
            measured = self._probe.measure(graph_of(pruned), options)
            return measured, None if isinstance(measured, Failure) else finite(self._task.score(module))
        with ThreadPoolExecutor(1) as pool, confined(free) as release:
            measuring = pool.submit(self._probe.measure, graph_of(pruned), options)
            score = self._task.score(module, between=lambda: release() if measuring.done() else None)
            return measuring.result(), finite(score)
