"""DDPG: the layer-by-layer agent of AMC (He et al., arXiv 1802.03494), for the entropy reward of paper B (Musat & Andonie,
arXiv 2312.04918) or any other.

    critic: Q(s_t, a_t) -> r + Q'(s_t+1, pi'(s_t+1)), r = the episode's reward on every step, gamma = 1
    actor:  maximise Q(s, pi(s));  Q', pi' follow at rate tau

Paper B's text gives the reward and that an agent chooses each layer's sparsity; that the agent is AMC's is our reading.
Differences from AMC's code:
 1. an action is clamped to what the budget still allows with everything behind it at its cheapest, for any measured
    budget: what a width costs comes from tables fitted to all answers so far, not from a count of operations.
 2. because those are estimates, a plan may end over the budget; its reward is less by the violation.
 3. between two trials the agent also plays on a model of all answers (Sutton's Dyna): 60 trials are too few for DDPG alone.
 4. rewards are standardised over the memory, in place of a moving baseline, and shared out over the steps. Of the latest
    episodes, most of which were played on the model, few are measured ones: those act through the model, as they are fitted.
 5. many updates per trial and a faster actor, for the same reason; noise fades with the share of trials spent.
 6. of some noisy episodes the one that promises most is asked, and none twice while there are others.
 7. paper B keeps the best plan by its reward, not the last; so do we, from the journal.
 8. its usual reward is the share of the dense network's spatial entropy that a plan keeps. Paper B's own, little entropy,
    is `--reward least-entropy`; it is no proxy for accuracy (docs/benchmarks/scoring.md).
 9. the state is that of env.py, and which group it is, in place of AMC's kernel, stride, weights and rest.
10. it starts from the best uniform plan, found by bisection, and from a scan of each group's widths around it; AMC from random
    plans, of which a network of VGG's size has next to none that are any good.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.core.plan import ChannelPlan
from pipeline.search.acquisition import highest_acquisition
from pipeline.search.environment import FEATURES, observe
from pipeline.search.initial_design import initial_design
from pipeline.search.problem import Evaluation, Problem, SearchSpace
from pipeline.search.surrogate import Surrogate, fit
from pipeline.search.uniform import bisect

__all__ = ["DDPGSettings", "ddpg_entropy"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DDPGSettings:
    """What the agent is made of."""

    bisection_trials: int = 6
    """Trials that go to finding the best uniform plan first."""
    scan_share: float = 0.125
    """Share of the trials that go to plans around it; AMC's 100 of 800 are random."""
    noise: float = 0.1
    """Standard deviation around the actor's wish at first; AMC: 0.5, which leads away from a good start."""
    last_noise: float = 0.05
    overrun_price: float = 10.0
    """What a violation takes from the reward, in standard deviations of the score."""
    imagined_episodes: int = 32
    """Played on the model for every trial."""
    memory: int = 512
    """Latest episodes that are learnt from."""
    updates_per_trial: int = 100
    batch: int = 64
    hidden: int = 64
    actor_rate: float = 1e-3
    critic_rate: float = 3e-3
    tau: float = 0.02
    proposals: int = 128


class _ActionBound:
    """What the budget still allows, AMC's "action wall", by the estimates of an additive model."""

    def __init__(self, model: Surrogate) -> None:
        self._costs = [violations for _, violations in model.tables]  # per group (widths, constraints)
        constants = np.asarray([curve.constant for curve in model.violations])
        cheapest = np.stack([cost.min(0) for cost in self._costs])
        behind = np.concatenate([np.cumsum(cheapest[::-1], axis=0)[::-1][1:], np.zeros((1, cheapest.shape[1]))])
        self._rest = behind + constants  # per group: all groups behind it at their cheapest
        self._widths = [np.asarray(choice.widths) / choice.channels for choice in model.space.choices]

    def nearest_allowed(self, group: int, spent: Floats, wishes: Floats) -> tuple[Floats, Floats]:
        """Wishes (n,), spent so far (n, constraints) -> the nearest fractions that leave enough, and what is spent then."""
        costs, widths = self._costs[group], self._widths[group]
        over = spent[:, None] + costs[None] + self._rest[group]  # (n, widths, constraints)
        worst = over.max(2, initial=-np.inf)
        distance = np.abs(widths[None] - wishes[:, None])
        allowed = worst <= 0
        pick = np.where(allowed.any(1), np.where(allowed, distance, np.inf).argmin(1), worst.argmin(1))
        return widths[pick], spent + costs[pick]


class _ReplayBuffer:
    """The latest episodes: states (n, T, features), actions (n, T), scores (n,), worst violations (n,)."""

    def __init__(self, groups: int, size: int) -> None:
        self._size = size
        self.states = np.empty((0, groups, len(FEATURES)), dtype=np.float32)
        self.actions = np.empty((0, groups), dtype=np.float32)
        self._scores, self._violations = np.empty(0), np.empty(0)

    def add(self, states: NDArray[np.float32], actions: Floats, scores: Floats, violations: Floats) -> None:
        self.states = np.concatenate([self.states, states])[-self._size :]
        self.actions = np.concatenate([self.actions, actions.astype(np.float32)])[-self._size :]
        self._scores = np.concatenate([self._scores, scores])[-self._size :]
        self._violations = np.concatenate([self._violations, violations.max(1, initial=0.0)])[-self._size :]

    def rewards(self, price: float) -> Floats:
        """(n,): scores, standardised, less `price` for each whole violation; standardised again."""
        rewards = (self._scores - self._scores.mean()) / (self._scores.std() + 1e-9) - price * self._violations
        standard: Floats = (rewards - rewards.mean()) / (rewards.std() + 1e-9)
        return standard


class _Agent:
    def __init__(self, space: SearchSpace, start: float, settings: DDPGSettings) -> None:
        self._space, self._settings = space, settings
        size = len(FEATURES) + len(space.choices)
        self._actor, self._slow_actor = (_mlp(size, settings.hidden, nn.Sigmoid()) for _ in range(2))
        self._critic, self._slow_critic = (_mlp(size + 1, settings.hidden, nn.Identity()) for _ in range(2))
        start = min(max(start, 0.01), 0.99)
        nn.init.constant_(self._actor[-2].bias, float(np.log(start / (1 - start))))  # type: ignore[arg-type]
        self._slow_actor.load_state_dict(self._actor.state_dict())
        self._slow_critic.load_state_dict(self._critic.state_dict())
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), settings.actor_rate)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), settings.critic_rate)

    def play(
        self, wall: _ActionBound, constraints: int, count: int, noise: float, generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], Floats]:
        """`count` episodes: states (count, T, features), fractions kept (count, T)."""
        groups = len(self._space.choices)
        states = np.empty((count, groups, len(FEATURES)), dtype=np.float32)
        kept = np.empty((count, groups))
        spent = np.zeros((count, constraints))
        for group in range(groups):
            states[:, group] = observe(self._space, kept[:, :group])
            with torch.no_grad():
                told = self._told(torch.from_numpy(states[:, group]), torch.full((count,), group))
                wishes = self._actor(told).numpy()[:, 0].astype(np.float64)
            wishes = _truncated_normal(wishes, noise, generator)
            kept[:, group], spent = wall.nearest_allowed(group, spent, wishes)
        return states, kept

    def learn(self, memory: _ReplayBuffer, generator: np.random.Generator) -> None:
        settings, groups = self._settings, len(self._space.choices)
        rewards = memory.rewards(settings.overrun_price)
        all_rewards = torch.from_numpy(rewards).float() / groups
        all_states, all_actions = torch.from_numpy(memory.states), torch.from_numpy(memory.actions)
        for _ in range(settings.updates_per_trial):
            episode = torch.from_numpy(generator.integers(len(rewards), size=settings.batch))
            step = torch.from_numpy(generator.integers(groups, size=settings.batch))
            following = (step + 1).clamp(max=groups - 1)
            now = self._told(all_states[episode, step], step)
            then = self._told(all_states[episode, following], following)
            with torch.no_grad():
                future = self._slow_critic(torch.cat([then, self._slow_actor(then)], 1))[:, 0]
                wanted = all_rewards[episode] + torch.where(step == groups - 1, 0.0, future)
            judged = self._critic(torch.cat([now, all_actions[episode, step, None]], 1))[:, 0]
            self._step(self._critic_optimizer, (judged - wanted).square().mean())
            self._step(self._actor_optimizer, -self._critic(torch.cat([now, self._actor(now)], 1)).mean())
            for slow, quick in ((self._slow_actor, self._actor), (self._slow_critic, self._critic)):
                for trailing, leading in zip(slow.parameters(), quick.parameters(), strict=True):
                    trailing.data.lerp_(leading.data, settings.tau)

    def _told(self, states: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """The state, and which group it is."""
        return torch.cat([states, nn.functional.one_hot(groups.long(), len(self._space.choices))], 1)

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ddpg_entropy(problem: Problem, settings: DDPGSettings | None = None) -> None:
    """Search with `problem.trials` judgements; see `Searcher`. What is maximised is what the evaluator calls the score."""
    settings = settings or DDPGSettings()
    space = problem.space
    generator = np.random.default_rng(problem.seed)
    answers = list(problem.known)
    memory = _ReplayBuffer(len(space.choices), settings.memory)

    def ask(plan: ChannelPlan) -> Evaluation:
        answers.append(found := problem.evaluate(plan))
        kept = np.asarray([[width / choice.channels for (_, width), choice in zip(plan, space.choices, strict=True)]])
        states = np.stack([observe(space, kept[:, :group]) for group in range(len(space.choices))], axis=1)
        memory.add(states, kept, np.asarray([found.score]), np.asarray([found.violations]))
        return found

    asking, last = replace(problem, evaluate=ask), len(problem.known) + problem.trials
    start = bisect(asking, min(settings.bisection_trials, problem.trials))
    initial_design(asking, start, min(round(settings.scan_share * problem.trials), last - len(answers)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        agent = _Agent(space, start, settings)
    first = len(answers)
    while len(answers) < last and len({answer.plan for answer in answers}) < space.size:
        wall = _ActionBound(fit(space, answers, additive=True))
        model = fit(space, answers)
        spent = (len(answers) - first) / (last - first)
        noise = settings.noise * (settings.last_noise / settings.noise) ** spent
        states, kept = agent.play(wall, problem.constraints, settings.imagined_episodes, noise, generator)
        guess = model.guess(kept)
        memory.add(states, kept, guess.score, guess.violations)
        agent.learn(memory, generator)
        _, kept = agent.play(wall, problem.constraints, settings.proposals, noise, generator)
        ask(space.plan(kept[highest_acquisition(model, kept, answers)].tolist()))


def _truncated_normal(means: Floats, deviation: float, generator: np.random.Generator) -> Floats:
    """Normal, drawn again where it fell outside [0, 1]."""
    drawn = means + deviation * generator.standard_normal(len(means))
    while (outside := (drawn < 0) | (drawn > 1)).any():
        drawn[outside] = means[outside] + deviation * generator.standard_normal(int(outside.sum()))
    return drawn


def _mlp(inputs: int, hidden: int, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1), last)
