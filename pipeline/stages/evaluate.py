"""Evaluator: the black box that a searcher asks. It takes a plan, and it returns the measured and scored evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline.core.budget import Budget, Constraint, judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.core.run import Trial
from pipeline.search.problem import Evaluation, Path, Problem, SearchSpace, TrialsSpent
from pipeline.stages.context import RunContext
from pipeline.stages.dense_and_thinnest import DenseAndThinnest
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.training.threads import compute_threads

__all__ = ["Evaluator", "places_of"]


@dataclass
class _Progress:
    count: int = 0
    best: dict[Budget, Candidate] = field(default_factory=dict)
    """The best plan within each budget so far."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates plans for a searcher.

    A searcher computes with one thread. Scoring uses as many threads as torch had when the evaluator was made.
    Several budgets share all trials. An evaluation holds the violations of all their constraints (`places_of`).
    """

    measurer: PlanMeasurer
    ends: DenseAndThinnest
    weights: InitialWeights
    trials: int
    budgets: tuple[Budget, ...] = ()
    """Those of the run, the one with the largest limit first. Without any, the constraints of the context are the budget."""
    threads: int = field(default_factory=torch.get_num_threads)
    _progress: _Progress = field(default_factory=_Progress)

    def __call__(self, plan: ChannelPlan) -> Evaluation:
        """Run one trial of the search. Raises TrialsSpent if there are none left."""
        progress = self._progress
        if progress.count >= self.trials:
            raise TrialsSpent
        progress.count += 1
        with compute_threads(self.threads):
            candidate = self.measurer.trial(plan, progress.count, self.weights, self.to_beat())
        return self.told(progress.count, candidate)

    def told(self, number: int, candidate: Candidate) -> Evaluation:
        """The evaluation of the trial `number`. Trials must come in the order of their numbers.

        The screen shows each one with the verdict for the first budget. For the others it shows each new best plan.
        """
        best, context, dense = self._progress.best, self.measurer.context, self.ends.dense
        evaluation = self.evaluation_of(candidate)
        first, *others = self._budgets
        improved = [
            budget
            for budget in (first, *others)
            if all(each.high <= 0 for each in violations(_searched(budget), candidate, dense))
            and (budget not in best or evaluation.score > self.reward_of(best[budget]))
        ]
        best.update(dict.fromkeys(improved, candidate))
        verdict = judge(_searched(first), candidate, dense)
        context.callback.trial(number, self.trials, candidate, dense, verdict, best.get(first))
        for budget in improved:
            if budget is not first:
                context.callback.say(f"best for {budget.text}: score {candidate.score or 0:.2f}")
        return evaluation

    def problem(self, space: SearchSpace, seed: int, path: Path | None = None) -> Problem:
        """The problem for a searcher. The evaluations of the dense and the thinnest plan are part of it from the start."""
        known = self.evaluation_of(self.ends.dense), self.evaluation_of(self.ends.thinnest)
        return Problem(space, self, self.trials, len(self.measurer.context.searched_constraints), seed, known, path)

    def evaluation_of(self, candidate: Candidate) -> Evaluation:
        """The reward, and the upper ends of the violations' intervals. A failed candidate violates every limit by 100 %."""
        found = violations(self.measurer.context.searched_constraints, candidate, self.ends.dense)
        return Evaluation(candidate.plan, self.reward_of(candidate), tuple(violation.high for violation in found))

    def reward_of(self, candidate: Candidate) -> float:
        """The reward. A failed candidate gets the smaller of the rewards of the dense and the thinnest plan, but at most 0."""
        reward = self.measurer.reward.reward_of(candidate)
        if reward is not None:
            return reward
        return min(0.0, *(self.measurer.reward.reward_of(end) or 0.0 for end in (self.ends.dense, self.ends.thinnest)))

    def to_beat(self) -> float | None:
        """The best score of a plan within the budget so far; of several budgets, the smallest of these.

        None if a budget has no such plan, or if the search maximises something else.
        """
        best = self._progress.best
        if len(best) < len(self._budgets) or self.measurer.reward.reward != "accuracy":
            return None
        return min(candidate.score or 0.0 for candidate in best.values())

    def for_budget(self, context: RunContext) -> "Evaluator":
        """What follows the search, for one of several budgets. `context` is that of `RunContext.for_budget`."""
        weights = replace(self.weights, context=context)
        return replace(self, measurer=replace(self.measurer, context=context), weights=weights, budgets=())

    @property
    def _budgets(self) -> tuple[Budget, ...]:
        return self.budgets or (Budget(self.measurer.context.constraints),)

    def searched(self) -> tuple[list[Trial], list[Evaluation]]:
        """The trials of the search in order, and their evaluations."""
        trials = [trial for trial in self.measurer.context.run.trials if trial.role == "search"]
        return trials, [self.evaluation_of(trial.candidate) for trial in trials]


def places_of(budgets: Sequence[Budget], constraints: Sequence[Constraint]) -> list[tuple[int, ...]]:
    """Which violations of an evaluation belong to each budget, if it holds those of `constraints`."""
    return [tuple(constraints.index(each) for each in _searched(budget)) for budget in budgets]


def _searched(budget: Budget) -> tuple[Constraint, ...]:
    """The constraints that guide the search."""
    return tuple(each for each in budget.constraints if not each.metric.after_finetuning)
