"""Measure plans: build, measure and score a plan, and record it in the journal. One method per role of a trial."""

import functools
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import available_cores
from pipeline.core.run import Role, Trial
from pipeline.errors import RunError
from pipeline.graph.pruned_model import PrunedModel
from pipeline.probe.interface import MeasurementOptions, Probe
from pipeline.stages.context import RunContext
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.plan_scorer import PlanScorer
from pipeline.stages.probe_adapter import graph_of
from pipeline.stages.provider_check import not_measured
from pipeline.stages.reward import RewardFunction, finite
from pipeline.stages.sequential_measurement import candidate_of, measure_again, measure_sequentially
from pipeline.training.scoring import Score
from pipeline.training.threads import confined

__all__ = ["PlanMeasurer", "measure_dense_with"]


@dataclass(frozen=True)
class PlanMeasurer:
    """Turns plans into candidates. A candidate is recorded in the journal before it is returned; a resumed run reads it there.

    Every method raises RunError if the journal holds another plan under the same role and number.
    """

    context: RunContext
    probe: Probe
    reward: RewardFunction

    def dense(self, plan: ChannelPlan, weights: InitialWeights) -> Candidate:
        """Measure the dense network with its memory, and score it."""
        return self._recorded("dense", 1, plan, lambda: self._measured_and_scored(plan, weights, None, memory=True))

    def uniform(self, plan: ChannelPlan, number: int) -> Candidate:
        """Measure a uniform plan without scoring it. Number 1 is the thinnest plan, and its memory is measured too."""

        def make() -> Candidate:
            pruned = self.context.builder.make(plan)
            return candidate_of(pruned, self.probe.measure(graph_of(pruned), self._options(memory=number == 1)), None)

        return self._recorded("uniform", number, plan, make)

    def thinnest(self, measured: Candidate, weights: InitialWeights) -> Candidate:
        """Score the `measured` thinnest plan with the weights that the search uses."""

        def make() -> Candidate:
            module = weights.of(measured.plan)
            score = None if measured.failure else finite(self.context.task.score(module))
            return self.reward.look(replace(measured, score=score), module)

        return self._recorded("thinnest", 1, measured.plan, make)

    def trial(self, plan: ChannelPlan, number: int, weights: InitialWeights, to_beat: float | None = None) -> Candidate:
        """Measure and score one trial of the search. A plan that clearly scores less than `to_beat` gets a rougher score."""
        return self._recorded("search", number, plan, lambda: self._measured_and_scored(plan, weights, to_beat, memory=False))

    def again(self, searched: Candidate, dense: Candidate, begins: Callable[[int], None] = lambda number: None) -> Candidate:
        """Measure a searched plan again in fresh processes, see `measure_again`. Its score is kept.

        The journal is searched by plan, not by number, because another version may measure the plans in another order.
        """
        repeated = {trial.number: trial.candidate for trial in self.context.run.trials if trial.role == "finalist"}
        known = next((candidate for candidate in repeated.values() if candidate.plan == searched.plan), None)
        if known is not None:
            return known
        number = next(number for number in itertools.count(1) if number not in repeated)

        def make() -> Candidate:
            pruned = self.context.builder.make(searched.plan)
            processes = self.context.profile.probe.final_processes
            constraints = self.context.searched_constraints
            measured = measure_again(self.probe, pruned, processes, constraints, dense, begins)
            return candidate_of(pruned, measured, None).with_score_of(searched)

        return self._recorded("finalist", number, searched.plan, make)

    def measured(self, plan: ChannelPlan) -> Measurement | Failure:
        """Measure a plan of the search. Nothing is recorded. It may be called from several threads."""
        return self.probe.measure(graph_of(self.context.builder.make(plan)), self._options(memory=False))

    def scorer(self, weights: InitialWeights) -> PlanScorer:
        """Return what scores plans of the search without this run."""
        return PlanScorer(self.context.builder, self.context.task, self.reward, weights.cut())

    def known(self, role: Role, number: int, plan: ChannelPlan) -> Candidate | None:
        """The candidate that the journal has under this role and number, or None. Raises RunError if it has another plan."""
        run = self.context.run
        known = run.find(role, number)
        if known is not None and known.candidate.plan != plan:
            raise RunError(
                f"{run.folder}: {role} trial {number} has another plan than before the interruption (was the software "
                "changed?); choose another --out"
            )
        return known.candidate if known else None

    def _recorded(self, role: Role, number: int, plan: ChannelPlan, make: Callable[[], Candidate]) -> Candidate:
        known = self.known(role, number, plan)
        if known is not None:
            return known
        started = time.monotonic()
        candidate = make()
        self.context.run.record(Trial(role, number, candidate, round(time.monotonic() - started, 3)))
        return candidate

    def _options(self, *, memory: bool) -> MeasurementOptions:
        needed = any(constraint.metric.needs_memory for constraint in self.context.searched_constraints)
        return MeasurementOptions(self.context.profile.probe.processes, memory or needed, fresh=False)

    def _measured_and_scored(
        self, plan: ChannelPlan, weights: InitialWeights, to_beat: float | None, *, memory: bool
    ) -> Candidate:
        """Measure and score one plan. The score is computed on the cores that no timed run uses, or after the timed runs."""
        pruned, module, options = self.context.builder.make(plan), weights.of(plan), self._options(memory=memory)
        score = functools.partial(self.context.task.score_against, module, to_beat)
        busy = set(self.probe.busy_cores)
        free = [core for core in available_cores() if core not in busy]
        measured, found = self._concurrently(pruned, score, options, free) if free else self._sequentially(pruned, score, options)
        candidate = candidate_of(pruned, measured, finite(found.value) if found else None)
        return self.reward.look(replace(candidate, scored_images=found.images if found else None), module)

    def _sequentially(
        self, pruned: PrunedModel, score: Callable[[], Score], options: MeasurementOptions
    ) -> tuple[Measurement | Failure, Score | None]:
        measured = self.probe.measure(graph_of(pruned), options)
        return measured, None if isinstance(measured, Failure) else score()

    def _concurrently(
        self, pruned: PrunedModel, score: Callable[..., Score], options: MeasurementOptions, free: list[int]
    ) -> tuple[Measurement | Failure, Score]:
        with ThreadPoolExecutor(1) as pool, confined(free) as release:
            measuring = pool.submit(self.probe.measure, graph_of(pruned), options)
            found = score(between=lambda: release() if measuring.done() else None)
            return measuring.result(), found


def measure_dense_with(probe: Probe, context: RunContext, dense: Candidate) -> Candidate:
    """Measure `dense` with another probe. Raises ProbeError if that fails."""
    pruned = context.builder.make(dense.plan)
    measured = measure_sequentially(probe, pruned, context.profile.probe.final_processes, (), dense)
    if isinstance(measured, Failure):
        raise not_measured("the dense network", measured)
    return replace(dense, measurement=measured)
