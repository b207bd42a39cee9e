"""PruningEnv: one episode decides the width of every group, input to output, and ends with one measured trial."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.search.problem import Assessment, Problem

__all__ = ["FEATURES", "PruningEnv"]

Floats = NDArray[np.float32]

FEATURES = (
    "position",  # of the group in the network, 0 to 1
    "log2_channels",  # of the group, over 12
    "narrowest",  # smallest width on offer over its channels
    "macs_share",  # arithmetic that hangs on the group
    "params_share",  # parameters that hang on it
    "macs_decided",  # macs_share of the groups already decided
    "macs_removed",  # macs_share of those, times what was removed of them
    "params_removed",
    "last_action",  # of the group before
    "mean_action",  # so far
)
"""State of the agent; as in paper A (layer, shape, sum of actions) with the cost so far, from AMC, added."""


class PruningEnv(gymnasium.Env[Floats, Floats]):
    """Markov decision process of paper A (arXiv 2110.08558) with channels in place of single weights.

    Action: (1,) in [0, 1], the fraction of channels the current group keeps. Reward: 0, and at the end of the episode
    the plan's score over 100. `info` at the end holds the `assessment`, whose overruns are the costs.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._choices = problem.space.choices
        self._fractions: list[float] = []
        self.observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Nothing is decided yet."""
        super().reset(seed=seed)
        self._fractions = []
        return self._observe(), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Decide the current group; after the last one, let the plan be judged."""
        self._fractions.append(float(np.clip(action[0], 0.0, 1.0)))
        if len(self._fractions) < len(self._choices):
            return self._observe(), 0.0, False, False, {}
        assessment: Assessment = self._problem.evaluate(self._problem.space.plan(self._fractions))
        return self._observe(), assessment.score / 100, True, False, {"assessment": assessment}

    def _observe(self) -> Floats:
        decided = len(self._fractions)
        choice = self._choices[min(decided, len(self._choices) - 1)]
        done = self._choices[:decided]
        removed = [1.0 - fraction for fraction in self._fractions]
        features = (
            decided / len(self._choices),
            np.log2(choice.channels) / 12,
            choice.widths[0] / choice.channels,
            choice.macs_share,
            choice.params_share,
            sum(each.macs_share for each in done),
            sum(each.macs_share * share for each, share in zip(done, removed, strict=True)),
            sum(each.params_share * share for each, share in zip(done, removed, strict=True)),
            self._fractions[-1] if decided else 1.0,
            float(np.mean(self._fractions)) if decided else 1.0,
        )
        return np.clip(np.asarray(features, dtype=np.float32), 0.0, 1.0)
