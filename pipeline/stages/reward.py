"""Reward: what a search maximises, and which figures of a candidate it needs."""

import math
from dataclasses import dataclass, replace

from torch import nn

from pipeline.core.candidate import Candidate
from pipeline.errors import ModelError
from pipeline.graph.channel_entropy import ChannelEntropy, start_channel_entropy
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.spatial_entropy import SpatialEntropy, start_spatial_entropy
from pipeline.search.problem import Reward
from pipeline.training.task import Task

__all__ = ["ENTROPY_INPUTS", "RewardFunction", "finite", "start_reward_function"]

ENTROPY_INPUTS = 256
"""Number of images whose activations are used."""


@dataclass(frozen=True)
class RewardFunction:
    """Adds the figures that a reward needs to candidates, and computes the reward."""

    reward: Reward
    builder: PrunedModelBuilder
    spatial: SpatialEntropy | None
    channels: ChannelEntropy | None

    def look(self, candidate: Candidate, module: nn.Module) -> Candidate:
        """`candidate` with its entropies. Score `module` first, because scoring re-estimates its BatchNorm statistics.

        The kept shares are means over the dense network's layers. Without some of these, they are not defined.
        """
        if candidate.score is None:
            return candidate
        whole = not candidate.plan.dropped
        if self.spatial and self.spatial.whole:
            disorder = self.spatial.of(module, self.builder.kept(candidate.plan))
            candidate = replace(candidate, entropy=disorder.entropy, dead_share=disorder.dead_share)
            candidate = replace(candidate, kept_entropy=disorder.kept if whole else None)
        if self.channels and self.channels.whole and whole:
            candidate = replace(candidate, kept_channel_entropy=self.channels.kept(module))
        return candidate

    def reward_of(self, candidate: Candidate) -> float | None:
        """The reward of a candidate from `look`; None if it failed. It is always a finite number."""
        if candidate.failure or candidate.score is None:
            return None
        if self.reward == "accuracy":
            return candidate.score
        if self.reward == "accuracy-entropy":  # a user's own score may be negative
            return candidate.score * (candidate.kept_entropy or 0.0) if candidate.score > 0 else candidate.score
        if self.reward == "channel-entropy":
            return 100 * (candidate.kept_channel_entropy or 0.0)
        if self.reward == "spatial-entropy":
            return 100 * (candidate.kept_entropy or 0.0)
        if self.reward == "least-entropy":
            return 100 * (1 - (1.0 if candidate.entropy is None else candidate.entropy))
        return finite(self.reward(candidate))


def start_reward_function(reward: Reward, builder: PrunedModelBuilder, task: Task) -> RewardFunction:
    """Compute the dense network's figures that `reward` compares with; a user's own function gets all that exist. Raises
    ModelError if the network lacks the entropy that `reward` needs.
    """
    if reward == "accuracy":
        return RewardFunction(reward, builder, None, None)
    inputs = task.inputs(ENTROPY_INPUTS)
    both = not isinstance(reward, str)
    channels = start_channel_entropy(builder.module, inputs) if both or reward == "channel-entropy" else None
    spatial = start_spatial_entropy(builder.module, builder.space, inputs) if both or reward != "channel-entropy" else None
    if not any(meter and meter.whole for meter in (spatial, channels)):
        raise ModelError(
            "--reward: this network has no entropy, because no active convolution has a map of more than one pixel; use "
            "--reward accuracy"
        )
    return RewardFunction(reward, builder, spatial, channels)


def finite(score: float | None) -> float | None:
    """`score`, or None if it is NaN or infinite. Such a score would win every comparison, or none."""
    return score if score is not None and math.isfinite(score) else None
