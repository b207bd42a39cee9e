"""Evaluator: the black box that a searcher asks. It takes a plan, and it returns the measured and scored evaluation."""

from dataclasses import dataclass, field

import torch

from pipeline.core.budget import judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.core.run import Trial
from pipeline.search.problem import Evaluation, Path, Problem, SearchSpace, TrialsSpent
from pipeline.stages.dense_and_thinnest import DenseAndThinnest
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.training.threads import compute_threads

__all__ = ["Evaluator"]


@dataclass
class _Progress:
    count: int = 0
    best: Candidate | None = None


@dataclass(frozen=True)
class Evaluator:
    """Evaluates plans for a searcher.

    A searcher computes with one thread. Scoring uses as many threads as torch had when the evaluator was made.
    """

    measurer: PlanMeasurer
    ends: DenseAndThinnest
    weights: InitialWeights
    trials: int
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
        """The evaluation of the trial `number`. Trials must come in the order of their numbers. The screen shows each one."""
        progress = self._progress
        evaluation = self.evaluation_of(candidate)
        if evaluation.feasible and (progress.best is None or evaluation.score > self.reward_of(progress.best)):
            progress.best = candidate
        context = self.measurer.context
        verdict = judge(context.searched_constraints, candidate, self.ends.dense)
        context.callback.trial(number, self.trials, candidate, self.ends.dense, verdict, progress.best)
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
        """The best score of a plan within the budget so far. None if there is none, or if the search maximises something else."""
        best = self._progress.best
        return best.score if best is not None and self.measurer.reward.reward == "accuracy" else None

    def searched(self) -> tuple[list[Trial], list[Evaluation]]:
        """The trials of the search in order, and their evaluations."""
        trials = [trial for trial in self.measurer.context.run.trials if trial.role == "search"]
        return trials, [self.evaluation_of(trial.candidate) for trial in trials]
