"""PPO-Lagrangian: the constrained agent of paper A (Malik et al., arXiv 2110.08558), one width per step.

Symbols are the paper's: rho = probability ratio, adv_r and adv_c = advantages of reward and cost, lam = multiplier.

    L = ( - E min(rho adv_r, clip(rho, 1 +- eps) adv_r) + sum_k lam_k E(rho adv_c_k) ) / (1 + sum_k lam_k)

Differences from the paper's code:
 1. real channels are removed; theirs are masked weights.
 2. any number of constraints, each with its own cost critic and multiplier; theirs has one.
 3. the cost is the measured overrun of the budget, not the share of weights.
 4. a Beta distribution, which lives on [0, 1]; their Gaussian is clipped and gathers at the ends.
 5. PID multipliers (see multiplier.py); theirs integrate with Adam at rate 1.
 6. updates use whole episodes, and episodes of a few updates ago once more: a trial costs a measurement.
 7. gamma = 1: episodes are short and everything comes at their end.
 8. it starts from the best uniform plan, found by bisection, instead of from noise.
 9. cost advantages are standardised like the reward's, so that a multiplier means the same for every budget.
10. what is kept is the best feasible episode, not a sample of the final policy.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.search.env import FEATURES, PruningEnv
from pipeline.search.multiplier import PIDMultipliers, PIDSettings
from pipeline.search.problem import Problem
from pipeline.search.uniform import bisect

__all__ = ["PPOLagrangianSettings", "ppo_lagrangian"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PPOLagrangianSettings:
    """What the agent is made of."""

    bisection_trials: int = 6
    """Trials that go to finding the best uniform plan first."""
    episodes_per_update: int = 4
    replayed_episodes: int = 24
    """Most recent episodes that an update learns from; PPO's clipping ignores those that became too improbable."""
    epochs: int = 20
    learning_rate: float = 3e-3
    clip: float = 0.4
    gae_lambda: float = 0.95
    target_kl: float = 0.5
    """An update stops when the policy has moved further than 1.5 times this."""
    hidden: int = 32
    concentration: float = 7.0
    """Initial alpha + beta of the Beta policy: a standard deviation of about 0.18 around the uniform plan."""
    gradient_norm: float = 0.5
    cost_clip: float = 1.0
    pid: PIDSettings = field(default_factory=PIDSettings)


@dataclass(frozen=True)
class _Episode:
    states: Floats  # (T, features)
    actions: Floats  # (T,)
    log_probabilities: Floats  # (T,)
    reward: float
    costs: Floats  # (constraints,)


def ppo_lagrangian(problem: Problem, settings: PPOLagrangianSettings | None = None) -> None:
    """Search with `problem.trials` judgements; see `Searcher`."""
    settings = settings or PPOLagrangianSettings()
    start = bisect(problem, min(settings.bisection_trials, problem.trials))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        agent = _Agent(problem.constraints, start, settings)
    generator = np.random.default_rng(problem.seed)
    env = PruningEnv(problem)
    memory: deque[_Episode] = deque(maxlen=settings.replayed_episodes)
    while True:  # until problem.evaluate raises TrialsSpent
        batch = [_play(env, agent, generator, settings) for _ in range(settings.episodes_per_update)]
        memory.extend(batch)
        agent.multipliers.update(np.mean([episode.costs for episode in batch], axis=0, dtype=np.float64))
        agent.learn(list(memory), generator)


def _play(env: PruningEnv, agent: "_Agent", generator: np.random.Generator, settings: PPOLagrangianSettings) -> _Episode:
    states, actions, log_probabilities = [], [], []
    state, _ = env.reset()
    done = False
    while not done:
        with torch.no_grad():
            policy = agent.policy(torch.from_numpy(state))
        # numpy draws it, so that the search's randomness has one source
        action = np.float32(np.clip(generator.beta(float(policy.concentration1), float(policy.concentration0)), 1e-4, 1 - 1e-4))
        states.append(state)
        actions.append(action)
        log_probabilities.append(float(policy.log_prob(torch.tensor(action))))
        state, reward, done, _, info = env.step(np.asarray([action]))
    costs = np.clip(np.asarray(info["assessment"].overruns, dtype=np.float32), -settings.cost_clip, settings.cost_clip)
    return _Episode(np.stack(states), np.asarray(actions), np.asarray(log_probabilities, dtype=np.float32), reward, costs)


class _Agent:
    """Policy, one critic for the reward and one for each cost, their optimiser, and the multipliers."""

    def __init__(self, constraints: int, start: float, settings: PPOLagrangianSettings) -> None:
        self.settings = settings
        head = nn.Linear(settings.hidden, 2)
        self.actor = _mlp(settings.hidden, head)
        self.critics = nn.ModuleList(_mlp(settings.hidden, nn.Linear(settings.hidden, 1)) for _ in range(1 + constraints))
        self.multipliers = PIDMultipliers(constraints, settings.pid)
        with torch.no_grad():
            head.weight.mul_(0.01)
            head.bias.copy_(torch.tensor([torch.logit(torch.tensor(min(max(start, 0.05), 0.95))), 0.0]))
        parameters = [*self.actor.parameters(), *self.critics.parameters()]
        self.optimizer = torch.optim.Adam(parameters, settings.learning_rate)

    def policy(self, states: Tensor) -> torch.distributions.Beta:
        """(..., features) -> Beta over the fraction to keep; the second output scales its concentration."""
        mean, concentration = self.actor(states).unbind(-1)
        mean = torch.sigmoid(mean).clamp(0.01, 0.99)
        total = 2.0 + (self.settings.concentration - 2.0) * torch.exp(concentration.clamp(-2.0, 3.0))
        return torch.distributions.Beta(mean * total, (1 - mean) * total)

    def learn(self, episodes: list[_Episode], generator: np.random.Generator) -> None:
        """Several passes over `episodes`, stopped early when the policy has moved far enough."""
        settings = self.settings
        states = torch.from_numpy(np.concatenate([episode.states for episode in episodes]))
        actions = torch.from_numpy(np.concatenate([episode.actions for episode in episodes]))
        old = torch.from_numpy(np.concatenate([episode.log_probabilities for episode in episodes]))
        advantages, returns = self._advantages(episodes)
        adv_r, adv_c = advantages[0], advantages[1:]
        adv_r = (adv_r - adv_r.mean()) / (adv_r.std() + 1e-6)
        adv_c = (adv_c - adv_c.mean(1, keepdim=True)) / (adv_c.std(1, keepdim=True) + 1e-6)
        lam = torch.from_numpy(self.multipliers.values).float()
        for _ in range(settings.epochs):
            order = torch.from_numpy(generator.permutation(len(states)))
            for chosen in order.chunk(max(1, len(order) // 64)):
                policy = self.policy(states[chosen])
                rho = torch.exp(policy.log_prob(actions[chosen]) - old[chosen])
                clipped = rho.clamp(1 - settings.clip, 1 + settings.clip)
                gain = torch.minimum(rho * adv_r[chosen], clipped * adv_r[chosen]).mean()
                # the cost term is clipped too: an old episode must not pull without limit
                cost = torch.maximum(rho * adv_c[:, chosen], clipped * adv_c[:, chosen]).mean(1)
                surrogate = (-gain + (lam * cost).sum()) / (1 + lam.sum())
                values = torch.stack([critic(states[chosen]).squeeze(-1) for critic in self.critics])
                loss = surrogate + 0.5 * (values - returns[:, chosen]).square().mean(1).sum()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_([*self.actor.parameters(), *self.critics.parameters()], settings.gradient_norm)
                self.optimizer.step()
            with torch.no_grad():
                log_ratio = self.policy(states).log_prob(actions) - old
                recent = log_ratio[-settings.episodes_per_update * len(episodes[-1].actions) :]
                if float((recent.exp() - 1 - recent).mean()) > 1.5 * settings.target_kl:  # joschu.net/blog/kl-approx.html
                    break

    def _advantages(self, episodes: list[_Episode]) -> tuple[Tensor, Tensor]:
        """GAE with gamma = 1 for the reward and every cost: two tensors of (1 + constraints, all steps)."""
        advantages, returns = [], []
        for episode in episodes:
            with torch.no_grad():
                states = torch.from_numpy(episode.states)
                values = torch.stack([critic(states).squeeze(-1) for critic in self.critics])
            final = torch.tensor([episode.reward, *episode.costs.tolist()])
            following = torch.cat([values[:, 1:], final[:, None]], dim=1)
            delta = following - values
            advantage = torch.zeros_like(delta)
            running = torch.zeros(len(delta))
            for step in reversed(range(delta.shape[1])):
                running = delta[:, step] + self.settings.gae_lambda * running
                advantage[:, step] = running
            advantages.append(advantage)
            returns.append(advantage + values)
        return torch.cat(advantages, dim=1), torch.cat(returns, dim=1)


def _mlp(hidden: int, head: nn.Linear) -> nn.Sequential:
    return nn.Sequential(nn.Linear(len(FEATURES), hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), head)
