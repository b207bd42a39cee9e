"""PruningEnv: an episode decides the width of every group, and whether each block stays, and ends with one measured trial."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from pipeline.search.problem import Evaluation, Problem, SearchSpace

__all__ = ["FEATURES", "PruningEnv", "observe"]

Floats = NDArray[np.float32]

FEATURES = (
    "position",  # of the group in the network, 0 to 1
    "log2_channels",  # of the group, over 12
    "narrowest",  # smallest allowed width over its channels
    "macs_share",  # share of the MACs that the group can save
    "params_share",  # share of the parameters that it can save
    "macs_decided",  # macs_share of the decided groups over that of all; a layer's MACs count in two groups
    "macs_removed",  # macs_share of these, times their removed fraction, over that of all
    "params_removed",
    "last_action",  # of the previous group
    "mean_action",  # so far
)
"""State of an agent: that of paper A (layer, shape, sum of actions), and what was removed so far, from AMC.

Removed are MACs and parameters. The cost of a plan on the device is measured only at its end
(docs/decisions/0018-the-cost-so-far.md).
"""


class PruningEnv(gymnasium.Env[Floats, Floats]):
    """Markov decision process of paper A (arXiv 2110.08558), with channels instead of single weights.

    Action: (1,) in [0, 1], the fraction of channels that the current group keeps. From 0.5 on, a block is kept. Reward: 0 until
    the episode ends, then the plan's score over 100, minus `violation_price` times its worst violation, for agents without
    constraints. At the end, `info` holds the `evaluation`, an `Evaluation` whose violations are the costs, for agents with
    constraints.
    """

    def __init__(self, problem: Problem, violation_price: float = 0.0) -> None:
        self._problem = problem
        self._violation_price = violation_price
        self._choices = problem.space.choices
        self._fractions: list[float] = []
        self.observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        """Start an episode in which nothing is decided yet."""
        super().reset(seed=seed)
        self._fractions = []
        return self._observe(), {}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        """Decide the current group. After the last one, evaluate the plan."""
        self._fractions.append(float(np.clip(action[0], 0.0, 1.0)))
        if len(self._fractions) < len(self._choices):
            return self._observe(), 0.0, False, False, {}
        evaluation: Evaluation = self._problem.evaluate(self._problem.space.plan(self._fractions))
        violation = max(0.0, *evaluation.violations) if evaluation.violations else 0.0
        reward = evaluation.score / 100 - self._violation_price * violation
        return self._observe(), reward, True, False, {"evaluation": evaluation}

    def _observe(self) -> Floats:
        state: Floats = observe(self._problem.space, np.asarray([self._fractions]))[0]
        return state


def observe(space: SearchSpace, fractions: NDArray[np.floating[Any]]) -> Floats:
    """State of n episodes, given the fractions decided so far: (n, decided) -> (n, features)."""
    choices = space.choices
    count, decided = fractions.shape
    choice = choices[min(decided, len(choices) - 1)]
    macs, params = np.asarray([(each.macs_share, each.params_share) for each in choices]).T
    macs, params = (shares[:decided] / max(shares.sum(), 1.0) for shares in (macs, params))
    if space.has_blocks:
        blocks = np.asarray([each.is_block for each in choices[:decided]], dtype=bool)
        fractions = np.where(blocks, fractions >= 0.5, fractions)
    removed = 1.0 - fractions
    features: Floats = np.empty((count, len(FEATURES)), dtype=np.float32)
    features[:, 0] = decided / len(choices)
    features[:, 1] = np.log2(choice.channels) / 12
    features[:, 2] = choice.widths[0] / choice.channels
    features[:, 3] = choice.macs_share
    features[:, 4] = choice.params_share
    features[:, 5] = macs.sum()
    features[:, 6] = removed @ macs
    features[:, 7] = removed @ params
    features[:, 8] = fractions[:, -1] if decided else 1.0
    features[:, 9] = fractions.mean(1) if decided else 1.0
    np.clip(features, 0.0, 1.0, out=features)
    return features
