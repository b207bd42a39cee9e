"""Plan scorer: scores plans without the run, so that it can be sent to other processes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.stages.reward import RewardFunction, finite
from pipeline.stages.sequential_measurement import candidate_of
from pipeline.training.task import Task

__all__ = ["PlanScorer"]


@dataclass(frozen=True)
class PlanScorer:
    """Scores a plan without measuring it. Nothing is recorded."""

    builder: PrunedModelBuilder
    task: Task
    reward: RewardFunction
    module_of: Callable[[ChannelPlan], nn.Module]
    """Makes the torch network of a plan, with its initial weights."""

    def __call__(self, plan: ChannelPlan, to_beat: float | None = None) -> Candidate:
        """Return the scored candidate. A plan that clearly scores less than `to_beat` gets a rougher score."""
        module = self.module_of(plan)
        found = self.task.score_against(module, to_beat)
        scored = candidate_of(self.builder.make(plan), None, finite(found.value))
        return self.reward.look(replace(scored, scored_images=found.images), module)
