"""Policy: a Beta distribution over the fraction that a group keeps, and its PPO-Lagrangian update."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.search.environment import FEATURES, observe
from pipeline.search.lagrange_multipliers import PIDMultipliers, PIDSettings
from pipeline.search.problem import SearchSpace

__all__ = ["Agent", "AgentSettings", "Episodes"]

Floats = NDArray[np.float32]

KEEPING = 0.75
"""The mean action for a block that the start keeps, in the first policy. From one half on, a block is kept."""


@dataclass(frozen=True)
class AgentSettings:
    """Hyperparameters of the agent."""

    epochs: int = 10
    minibatches: int = 2
    learning_rate: float = 5e-3
    clip: float = 0.2
    gae_lambda: float = 0.95
    target_kl: float = 0.1
    """An update stops when the approximate KL divergence exceeds 1.5 times this."""
    hidden: int = 32
    concentration: float = 7.0
    """Initial alpha + beta of the Beta policy. It gives a standard deviation of about 0.18 around the uniform plan."""
    gradient_norm: float = 0.5
    cost_clip: float = 1.0
    pid: PIDSettings = field(default_factory=PIDSettings)


@dataclass(frozen=True)
class Episodes:
    """n episodes of T steps, without their rewards."""

    states: Floats
    """(n, T, features)"""
    actions: Floats
    """(n, T)"""
    log_probabilities: Floats
    """(n, T), under the policy that played them."""


class Agent:
    """Policy, one critic for the reward and one for each cost, their optimiser, and the multipliers."""

    def __init__(self, space: SearchSpace, constraints: int, start: NDArray[np.float64], settings: AgentSettings) -> None:
        self.settings = settings
        self._space = space
        groups = len(space.choices)
        head = nn.Linear(settings.hidden, 2)
        self._actor = _mlp(settings.hidden, head)
        self._own = nn.Parameter(torch.zeros(groups, 2))
        middle = float(np.median([share for share, choice in zip(start, space.choices, strict=True) if not choice.is_block]))
        with torch.no_grad():
            for number, (choice, share) in enumerate(zip(space.choices, start, strict=True)):
                wanted = (KEEPING if share >= 0.5 else 1 - KEEPING) if choice.is_block else float(share)
                self._own[number, 0] = _logit(wanted) - _logit(middle)
        self._critics = nn.ModuleList(_mlp(settings.hidden, nn.Linear(settings.hidden, 1)) for _ in range(1 + constraints))
        self.multipliers = PIDMultipliers(constraints, settings.pid)
        with torch.no_grad():
            head.weight.mul_(0.01)
            head.bias.copy_(torch.tensor([_logit(middle), 0.0]))
        self._parameters = [*self._actor.parameters(), self._own, *self._critics.parameters()]
        self._optimizer = torch.optim.Adam(self._parameters, settings.learning_rate, foreach=True)

    def policy(self, states: Tensor, groups: slice) -> torch.distributions.Beta:
        """(..., len(groups), features) -> Beta over the fraction to keep. The second output scales its concentration."""
        mean, concentration = (self._actor(states) + self._own[groups]).unbind(-1)
        mean = torch.sigmoid(mean).clamp(0.01, 0.99)
        total = 2.0 + (self.settings.concentration - 2.0) * torch.exp(concentration.clamp(-2.0, 4.0))
        # checking the arguments takes longer than everything else here
        return torch.distributions.Beta(mean * total, (1 - mean) * total, validate_args=False)

    def play(self, count: int, generator: np.random.Generator) -> Episodes:
        """Play `count` episodes at once. The caller computes their rewards."""
        groups = len(self._space.choices)
        states = np.empty((count, groups, len(FEATURES)), dtype=np.float32)
        actions, log_probabilities = np.empty((2, count, groups), dtype=np.float32)
        for step in range(groups):
            states[:, step] = observe(self._space, actions[:, :step])
            with torch.no_grad():
                policy = self.policy(torch.from_numpy(states[:, step : step + 1]), slice(step, step + 1))
            # numpy draws it, so that the search has a single source of randomness
            drawn = generator.beta(policy.concentration1.numpy()[:, 0], policy.concentration0.numpy()[:, 0])
            actions[:, step] = np.clip(drawn, 1e-4, 1 - 1e-4)
            log_probabilities[:, step] = policy.log_prob(torch.from_numpy(actions[:, step : step + 1])).numpy()[:, 0]
        return Episodes(states, actions, log_probabilities)

    def learn(self, episodes: Episodes, rewards: Floats, costs: Floats, generator: np.random.Generator) -> None:
        """Make several passes over episodes with `rewards` (n,) and `costs` (n, constraints), and stop early when the policy has
        moved far enough.

            L = ( - E min(rho adv_r, clip(rho, 1 +- eps) adv_r) + sum_k lam_k E max(rho adv_c_k, clip(rho) adv_c_k) )
                / (1 + sum_k lam_k)
        """
        settings = self.settings
        costs = np.clip(costs, -settings.cost_clip, settings.cost_clip)
        self.multipliers.update(costs.mean(0, dtype=np.float64))
        lam = torch.from_numpy(self.multipliers.values).float()
        states, actions = torch.from_numpy(episodes.states), torch.from_numpy(episodes.actions)
        old = torch.from_numpy(episodes.log_probabilities)
        advantages, returns = self._advantages(states, torch.from_numpy(np.column_stack([rewards, costs]).astype(np.float32)))
        adv = (advantages - advantages.mean((1, 2), keepdim=True)) / (advantages.std((1, 2), keepdim=True) + 1e-6)
        adv_r, adv_c = adv[0], adv[1:]
        everything = slice(0, states.shape[1])
        for _ in range(settings.epochs):
            order = torch.from_numpy(generator.permutation(len(states)))
            for chosen in order.chunk(settings.minibatches):
                rho = torch.exp(self.policy(states[chosen], everything).log_prob(actions[chosen]) - old[chosen])
                clipped = rho.clamp(1 - settings.clip, 1 + settings.clip)
                gain = torch.minimum(rho * adv_r[chosen], clipped * adv_r[chosen]).mean()
                cost = torch.maximum(rho * adv_c[:, chosen], clipped * adv_c[:, chosen]).mean((1, 2))
                surrogate = (-gain + (lam * cost).sum()) / (1 + lam.sum())
                values = self._values(states[chosen])
                loss = surrogate + 0.5 * (values - returns[:, chosen]).square().mean((1, 2)).sum()
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._parameters, settings.gradient_norm)
                self._optimizer.step()
            with torch.no_grad():
                log_ratio = self.policy(states, everything).log_prob(actions) - old
                if float((log_ratio.exp() - 1 - log_ratio).mean()) > 1.5 * settings.target_kl:  # joschu.net/blog/kl-approx.html
                    break

    def _values(self, states: Tensor) -> Tensor:
        return torch.stack([critic(states).squeeze(-1) for critic in self._critics])

    def _advantages(self, states: Tensor, finals: Tensor) -> tuple[Tensor, Tensor]:
        """GAE with gamma = 1 from the final reward and costs, (n, 1 + constraints). Two tensors of (1 + constraints, n, T)."""
        with torch.no_grad():
            values = self._values(states)
        delta = torch.cat([values[..., 1:], finals.T[..., None]], dim=-1) - values
        advantages = torch.zeros_like(delta)
        running = torch.zeros(delta.shape[:2])
        for step in reversed(range(delta.shape[-1])):
            running = delta[..., step] + self.settings.gae_lambda * running
            advantages[..., step] = running
        return advantages, advantages + values


def _logit(share: float) -> Tensor:
    return torch.logit(torch.tensor(min(max(share, 0.05), 0.95)))


def _mlp(hidden: int, head: nn.Linear) -> nn.Sequential:
    return nn.Sequential(nn.Linear(len(FEATURES), hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), head)
