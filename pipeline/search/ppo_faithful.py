"""PPO-Lagrangian as in the code of paper A (Malik et al., arXiv 2110.08558, coarse-grained mode), for comparison with ours.

    L      = ( - E min(rho adv_r, clip(rho, 1 +- eps) adv_r) + lam E(rho adv_c) ) / (1 + lam)
    lam    = softplus(xi), xi by Adam at rate 1 on - softplus(xi) (mean step cost - limit), after each update
It is meant for the thousands of episodes of the paper. It learns after every 384 steps, one step per group. If trials times
groups are fewer, it never learns; with tens of trials it hardly leaves its first policy.
Differences from the paper's code that remain:
 1. Channels are removed, and widths come from the search space. The paper masks single weights.
 2. The cost is the worst violation, as 100 (1 + violation) per step with a limit of 100. Under a budget on `params` that is the
    paper's cost: the percentage of weights kept, over the allowed percentage.
 3. One environment plays whole episodes until there are as many steps as the paper's three environments play in parallel.
 4. The score is the evaluator's (held-out images, BatchNorm re-estimated, no training). The paper scores on training images,
    after 0, 32 and 128 steps of fine-tuning in the thirds of the search.
 5. At most 0.9 of a layer is pruned under every budget. The paper has 0.8 under the looser of its two budgets.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell
from pipeline.search.problem import Evaluation, SearchSpace

__all__ = ["FaithfulSettings", "SoftplusMultiplier", "ppo_lagrangian_faithful"]

Floats = NDArray[np.float64]

STATE = 10
"""Layer index, channels in and out, kernel, stride and padding (two each), sum of actions so far."""


@dataclass(frozen=True)
class FaithfulSettings:
    """Hyperparameters of the paper."""

    steps_per_update: int = 384
    """128 in each of three environments."""
    epochs: int = 10
    minibatch: int = 64
    learning_rate: float = 3e-4
    clip: float = 0.2
    gamma: float = 0.99
    gae_lambda: float = 0.95
    cost_gae_lambda: float = 1.0
    target_kl: float = 0.1
    hidden: int = 32
    gradient_norm: float = 0.5
    most_pruned: float = 0.9
    """Largest action. It grows by up to `more_at_the_end` in the course of the search."""
    more_at_the_end: float = 0.05
    multiplier_rate: float = 1.0
    limit: float = 100.0


class SoftplusMultiplier:
    """lam = softplus(xi), initially 1."""

    def __init__(self, rate: float) -> None:
        self._xi = torch.tensor(float(np.log(np.expm1(1.0))), requires_grad=True)
        self._optimizer = torch.optim.Adam([self._xi], lr=rate)

    @property
    def value(self) -> float:
        """The current value."""
        return float(nn.functional.softplus(self._xi.detach()))

    def update(self, excess: float) -> None:
        """Update lam by `excess`, the mean step cost minus the limit."""
        self._optimizer.zero_grad()
        (-nn.functional.softplus(self._xi) * excess).backward()
        self._optimizer.step()


class _Running:
    """Running mean and variance of all values (Chan et al.), as in VecNormalize."""

    def __init__(self, size: int) -> None:
        self.mean, self.variance, self._count = np.zeros(size), np.ones(size), 1e-4

    def see(self, rows: Floats) -> None:
        count, total = len(rows), self._count + len(rows)
        shift = rows.mean(0) - self.mean
        squares = self.variance * self._count + rows.var(0) * count + shift**2 * self._count * count / total
        self.mean, self.variance, self._count = self.mean + shift * count / total, squares / total, total

    def standard(self, values: Floats) -> Floats:
        """`values` in standard deviations, clipped to [-10, 10]."""
        found: Floats = np.clip(values / np.sqrt(self.variance + 1e-8), -10, 10)
        return found


@dataclass(frozen=True)
class _Episode:
    states: Tensor  # (T, STATE), normalised as the policy sees them
    actions: Tensor  # (T,), before clipping
    log_probabilities: Tensor  # (T,), under the policy that played
    finals: Floats  # (2,): reward and cost at the end of the episode
    scaled: Floats  # (2,): the same, scaled for learning


@ask_and_tell
def ppo_lagrangian_faithful(state: SearchState, settings: FaithfulSettings | None = None) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`. The episodes between two updates can be evaluated at once."""
    settings = settings or FaithfulSettings()
    problem = state.problem
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        agent = _Agent(settings)
    generator = np.random.default_rng(problem.seed)
    groups = len(problem.space.choices)
    while state.asked < problem.trials:
        first, played = len(state.answers), list[tuple[Tensor, Floats]]()
        while len(played) * groups < settings.steps_per_update and state.asked < problem.trials:
            ceiling = min(settings.most_pruned + settings.more_at_the_end * state.asked / problem.trials, 1.0)
            states, actions = _play(problem.space, agent, ceiling, generator)
            played.append((states, actions))
            pruned = np.clip(actions, 0.0, ceiling)
            yield problem.space.plan([1 - fraction for fraction in pruned.tolist()])
        yield WAIT
        answers = state.answers[first:]
        agent.learn([_episode(agent, *each, answer) for each, answer in zip(played, answers, strict=True)], generator)


def _play(space: SearchSpace, agent: "_Agent", ceiling: float, generator: np.random.Generator) -> tuple[Tensor, Floats]:
    """Play an episode: the states as the policy sees them, (T, STATE), and the actions before clipping, (T,)."""
    pruned: list[float] = []
    states, actions = [], []
    for group in range(len(space.choices)):
        states.append(agent.look(_state(space, group, sum(pruned))))
        mean, deviation = agent.policy(states[-1])
        actions.append(mean + deviation * generator.standard_normal())
        pruned.append(float(np.clip(actions[-1], 0.0, ceiling)))
    return torch.stack(states), np.asarray(actions)


def _episode(agent: "_Agent", states: Tensor, actions: Floats, answer: Evaluation) -> _Episode:
    groups = len(actions)
    finals = np.asarray([answer.score, groups * 100 * (1 + max(answer.violations, default=-1.0))])
    done = torch.tensor(actions, dtype=torch.float32)
    return _Episode(states, done, agent.log_probabilities(states, done), finals, agent.scale(finals, groups))


def _state(space: SearchSpace, group: int, removed: float) -> Floats:
    choice = space.choices[group]
    layer = choice.layer
    return np.asarray([group, layer.inputs, choice.channels, *layer.kernel, *layer.stride, *layer.padding, removed], dtype=float)


class _Agent:
    def __init__(self, settings: FaithfulSettings) -> None:
        self._settings = settings
        self._actor, self._reward_critic, self._cost_critic = (_mlp(settings.hidden) for _ in range(3))
        self._log_deviation = nn.Parameter(torch.zeros(()))
        critics = [*self._reward_critic.parameters(), *self._cost_critic.parameters()]
        self._parameters = [*self._actor.parameters(), self._log_deviation, *critics]
        self._optimizer = torch.optim.Adam(self._parameters, settings.learning_rate)
        self.multiplier = SoftplusMultiplier(settings.multiplier_rate)
        self._seen = _Running(STATE)
        self._returns = _Running(2)  # discounted, of reward and cost

    def look(self, state: Floats) -> Tensor:
        """Normalise a state for the policy, (STATE,), by the mean and deviation of all states so far."""
        self._seen.see(state[None])
        return torch.from_numpy(self._seen.standard(state - self._seen.mean)).float()

    def scale(self, finals: Floats, steps: int) -> Floats:
        """Scale the reward and cost at the end of an episode, (2,), by the deviation of all discounted returns so far.
        VecNormalize
        sums returns forwards, so an episode's returns are 0 at all `steps` except the last.
        """
        self._returns.see(np.vstack([np.zeros((steps - 1, 2)), finals]))
        return self._returns.standard(finals)

    def policy(self, state: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of the fraction to prune."""
        with torch.no_grad():
            return float(self._actor(state)[0]), float(self._log_deviation.exp())

    def log_probabilities(self, states: Tensor, actions: Tensor) -> Tensor:
        """Log probabilities of actions (T,) in states (T, STATE), under the current policy."""
        with torch.no_grad():
            found: Tensor = self._distribution(states).log_prob(actions)
        return found

    def learn(self, episodes: list[_Episode], generator: np.random.Generator) -> None:
        settings = self._settings
        lengths = [len(each.actions) for each in episodes]
        states, actions = (torch.cat(each) for each in zip(*((e.states, e.actions) for e in episodes), strict=True))
        old = torch.cat([each.log_probabilities for each in episodes])
        with torch.no_grad():
            values = torch.stack([self._reward_critic(states)[:, 0], self._cost_critic(states)[:, 0]])
        parts = zip(values.split(lengths, dim=1), episodes, strict=True)
        advantages = torch.cat([self._gae(value, each.scaled) for value, each in parts], dim=1)
        returns = advantages + values
        adv_r = (advantages[0] - advantages[0].mean()) / (advantages[0].std() + 1e-8)
        adv_c = advantages[1] - advantages[1].mean()  # centred only, as in the paper's code
        lam = self.multiplier.value
        for _ in range(settings.epochs):
            for chosen in torch.from_numpy(generator.permutation(len(actions))).split(settings.minibatch):
                rho = torch.exp(self._distribution(states[chosen]).log_prob(actions[chosen]) - old[chosen])
                clipped = rho.clamp(1 - settings.clip, 1 + settings.clip)
                gain = torch.minimum(rho * adv_r[chosen], clipped * adv_r[chosen]).mean()
                surrogate = (-gain + lam * (rho * adv_c[chosen]).mean()) / (1 + lam)
                found = torch.stack([self._reward_critic(states[chosen])[:, 0], self._cost_critic(states[chosen])[:, 0]])
                loss = surrogate + 0.5 * (found - returns[:, chosen]).square().mean(1).sum()
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self._parameters, settings.gradient_norm)
                self._optimizer.step()
            with torch.no_grad():
                if float((old - self._distribution(states).log_prob(actions)).mean()) > 1.5 * settings.target_kl:
                    break
        self.multiplier.update(float(sum(each.finals[1] for each in episodes) / sum(lengths)) - settings.limit)

    def _gae(self, values: Tensor, finals: Floats) -> Tensor:
        """Values (2, T) and the final reward and cost (2,) -> advantages (2, T)."""
        settings = self._settings
        decay = settings.gamma * torch.tensor([settings.gae_lambda, settings.cost_gae_lambda])
        advantages, running = torch.zeros_like(values), torch.zeros(2)
        end = torch.from_numpy(finals).float()
        for step in reversed(range(values.shape[1])):
            last = step == values.shape[1] - 1
            delta = (end if last else settings.gamma * values[:, step + 1]) - values[:, step]
            running = delta + (0.0 if last else decay) * running
            advantages[:, step] = running
        return advantages

    def _distribution(self, states: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(self._actor(states)[:, 0], self._log_deviation.exp())


def _mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(STATE, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
