"""DDPG: the layer-by-layer agent of AMC (He et al., arXiv 1802.03494), for the entropy reward of paper B (Musat & Andonie,
arXiv 2312.04918) or any other reward.

    critic: Q(s_t, a_t) -> r + Q'(s_t+1, pi'(s_t+1)), r = the episode's reward on every step, gamma = 1
    actor:  maximise Q(s, pi(s));  the target networks Q' and pi' follow at rate tau

Paper B's text gives the reward and says that an agent chooses the sparsity of each layer. We read this agent as AMC's.
Differences from AMC's code:
 1. An action is clamped to what the budget still allows when every later group is at its cheapest. This holds for any measured
    budget, because the cost of a width comes from tables that are fitted to all evaluations so far. AMC counts operations.
 2. The tables are estimates, so a plan may still violate the budget. Its reward is then reduced by the violation.
 3. Between two trials the agent also plays on a model of all evaluations (Sutton's Dyna). 60 trials alone are too few for DDPG.
 4. Rewards are standardised over the replay buffer and shared out over the steps; AMC subtracts a moving baseline. Most of the
    latest episodes were played on the model. Measured episodes act through the model, which is fitted to them.
 5. There are many updates per trial and the actor learns faster, for the same reason. The noise fades with the trials spent.
 6. Of several noisy episodes the one with the highest acquisition value is evaluated. A plan is evaluated twice only if no other
    is left.
 7. Paper B keeps the plan with the best reward, not the last one. So do we, from the journal.
 8. The default reward is the share of the dense network's spatial entropy that a plan keeps. Paper B's own reward, low entropy,
    is `--reward least-entropy`. It does not predict accuracy (docs/benchmarks/scoring.md).
 9. The state is that of environment.py plus the index of the group. AMC's state has kernel, stride and weights.
10. The search starts from the best uniform plan, found by bisection (start.py), and from a sample of widths around it. AMC
    starts at random plans; for a network of VGG's size nearly all of them are useless.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.search.acquisition import ask_best
from pipeline.search.ask_tell import Questions, SearchState, ask_and_tell
from pipeline.search.believe import believed
from pipeline.search.environment import FEATURES, observe
from pipeline.search.problem import Evaluation, SearchSpace
from pipeline.search.start import BISECTION_TRIALS, start_and_design
from pipeline.search.surrogate import Surrogate, fit, fractions

__all__ = ["DDPGSettings", "ddpg_entropy"]

Floats = NDArray[np.float64]

KEEPING = 0.65
"""The first action for a block. From one half on, a block is kept."""


@dataclass(frozen=True)
class DDPGSettings:
    """Hyperparameters of the agent."""

    bisection_trials: int = BISECTION_TRIALS
    """Trials that find the best uniform plan."""
    design_share: float = 0.125
    """Share of the trials that sample plans around the uniform one; AMC draws 100 of 800 at random."""
    noise: float = 0.1
    """Initial standard deviation around the actor's output. AMC has 0.5, which loses a good start."""
    last_noise: float = 0.05
    violation_price: float = 10.0
    """What a violation takes from the reward, in standard deviations of the score."""
    model_episodes: int = 32
    """Episodes played on the model per trial."""
    memory: int = 512
    """Capacity of the replay buffer, in episodes."""
    updates_per_trial: int = 100
    batch: int = 64
    hidden: int = 64
    actor_rate: float = 1e-3
    critic_rate: float = 3e-3
    tau: float = 0.02
    proposals: int = 128


class _ActionBound:
    """The actions that the budget still allows, as estimated by an additive model; AMC's "action wall"."""

    def __init__(self, model: Surrogate) -> None:
        self._costs = [violations for _, violations in model.tables]  # per group (widths, constraints)
        constants = np.asarray([curve.constant for curve in model.violations])
        cheapest = np.stack([cost.min(0) for cost in self._costs])
        later = np.concatenate([np.cumsum(cheapest[::-1], axis=0)[::-1][1:], np.zeros((1, cheapest.shape[1]))])
        self._rest = list(later + constants)  # per group: the cost when every later group is at its cheapest
        if model.space.has_blocks:  # what is inside a dropped block costs what its full width costs
            self._rest = _rest_with_blocks([len(choice.contents) for choice in model.space.choices], self._costs, constants)
        self._widths = [np.asarray(choice.widths) / choice.channels for choice in model.space.choices]

    def nearest_allowed(self, group: int, spent: Floats, wanted_fractions: Floats) -> tuple[Floats, Floats]:
        """The nearest allowed fractions (n,) to `wanted_fractions` (n,), and the updated cost; `spent` is (n, constraints)."""
        costs, widths = self._costs[group], self._widths[group]
        over = spent[:, None] + costs[None] + self._rest[group]  # (n, widths, constraints)
        worst = over.max(2, initial=-np.inf)
        distance = np.abs(widths[None] - wanted_fractions[:, None])
        allowed = worst <= 0
        pick = np.where(allowed.any(1), np.where(allowed, distance, np.inf).argmin(1), worst.argmin(1))
        return widths[pick], spent + costs[pick]

    def full_cost(self, group: int) -> Floats:
        """The cost of `group` at its full width, (constraints,)."""
        cost: Floats = self._costs[group][-1]
        return cost


def _rest_with_blocks(contents: list[int], costs: list[Floats], constants: Floats) -> list[Floats]:
    """For each choice, (widths, constraints): the cost when every later one is at its cheapest, for each of its own widths."""
    full = [cost[-1] for cost in costs]

    def cheapest(first: int, end: int) -> Floats:
        total = np.zeros_like(constants)
        while first < end:
            after = first + 1 + contents[first]
            if contents[first]:
                kept = costs[first][1] + cheapest(first + 1, after)
                total = total + np.minimum(kept, costs[first][0] + sum(full[first + 1 : after]))
            else:
                total = total + costs[first].min(0)
            first = after
        return total

    def later(first: int, ends: list[int]) -> Floats:
        total = constants
        for end in ends:  # of the blocks around, the innermost first, and of the network
            total = total + cheapest(first, end)
            first = end
        return total

    rest = []
    for number, cost in enumerate(costs):
        around = [block for block in range(number - 1, -1, -1) if number <= block + contents[block]]
        ends = [*(block + 1 + contents[block] for block in around), len(costs)]
        after = number + 1 + contents[number]
        kept = later(number + 1, [after, *ends])
        dropped = later(after, ends) + sum(full[number + 1 : after])
        rest.append(np.stack([dropped if contents[number] and not width else kept for width in range(len(cost))]))
    return rest


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
    def __init__(self, space: SearchSpace, start: Floats, settings: DDPGSettings) -> None:
        self._space, self._settings = space, settings
        size = len(FEATURES) + len(space.choices)
        self._actor, self._target_actor = (_mlp(size, settings.hidden, nn.Sigmoid()) for _ in range(2))
        self._critic, self._target_critic = (_mlp(size + 1, settings.hidden, nn.Identity()) for _ in range(2))
        blocks = np.asarray([choice.is_block for choice in space.choices])
        middle = min(max(float(np.median(start[~blocks])), 0.01), 0.99)
        nn.init.constant_(self._actor[-2].bias, float(np.log(middle / (1 - middle))))  # type: ignore[arg-type]
        self._raised = None
        if space.has_blocks:
            wanted = np.where(blocks, np.where(start >= 0.5, KEEPING, 1 - KEEPING), np.clip(start, 0.01, 0.99))
            raised = np.log(wanted / (1 - wanted)) - np.log(middle / (1 - middle))
            self._raised = torch.from_numpy(raised).float()
        self._around = [
            [block for block, around in enumerate(space.choices) if choice.name in around.contents] for choice in space.choices
        ]
        """For each choice, the blocks that it is inside."""
        self._target_actor.load_state_dict(self._actor.state_dict())
        self._target_critic.load_state_dict(self._critic.state_dict())
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), settings.actor_rate)
        self._critic_optimizer = torch.optim.Adam(self._critic.parameters(), settings.critic_rate)

    def play(
        self, bound: _ActionBound, constraints: int, count: int, noise: float, generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], Floats]:
        """`count` episodes: states (count, T, features), fractions kept (count, T)."""
        groups = len(self._space.choices)
        states = np.empty((count, groups, len(FEATURES)), dtype=np.float32)
        kept = np.empty((count, groups))
        spent = np.zeros((count, constraints))
        for group in range(groups):
            states[:, group] = observe(self._space, kept[:, :group])
            with torch.no_grad():
                place = torch.full((count,), group)
                observation = self._observation(torch.from_numpy(states[:, group]), place)
                wanted_fractions = self._act(self._actor, observation, place).numpy()[:, 0].astype(np.float64)
            wanted_fractions = _truncated_normal(wanted_fractions, noise, generator)
            kept[:, group], after = bound.nearest_allowed(group, spent, wanted_fractions)
            hidden = (kept[:, self._around[group]] == 0).any(1)
            kept[hidden, group] = 1.0
            spent = np.where(hidden[:, None], spent + bound.full_cost(group), after) if hidden.any() else after
        return states, kept

    def learn(self, memory: _ReplayBuffer, generator: np.random.Generator) -> None:
        settings, groups = self._settings, len(self._space.choices)
        rewards = memory.rewards(settings.violation_price)
        all_rewards = torch.from_numpy(rewards).float() / groups
        all_states, all_actions = torch.from_numpy(memory.states), torch.from_numpy(memory.actions)
        for _ in range(settings.updates_per_trial):
            episode = torch.from_numpy(generator.integers(len(rewards), size=settings.batch))
            step = torch.from_numpy(generator.integers(groups, size=settings.batch))
            following = (step + 1).clamp(max=groups - 1)
            now = self._observation(all_states[episode, step], step)
            then = self._observation(all_states[episode, following], following)
            with torch.no_grad():
                future = self._target_critic(torch.cat([then, self._act(self._target_actor, then, following)], 1))[:, 0]
                td_target = all_rewards[episode] + torch.where(step == groups - 1, 0.0, future)
            q_value = self._critic(torch.cat([now, all_actions[episode, step, None]], 1))[:, 0]
            self._step(self._critic_optimizer, (q_value - td_target).square().mean())
            self._step(self._actor_optimizer, -self._critic(torch.cat([now, self._act(self._actor, now, step)], 1)).mean())
            for target, online in ((self._target_actor, self._actor), (self._target_critic, self._critic)):
                for target_parameter, online_parameter in zip(target.parameters(), online.parameters(), strict=True):
                    target_parameter.data.lerp_(online_parameter.data, settings.tau)

    def _act(self, actor: nn.Module, observation: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """The action, (n, 1). With blocks, the actor's outputs are shifted, so that the first policy stays near the start."""
        action: torch.Tensor = actor(observation)
        if self._raised is None:
            return action
        return torch.sigmoid(torch.logit(action, 1e-6) + self._raised[groups.long()][:, None])

    def _observation(self, states: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """The state and a one-hot index of the group."""
        return torch.cat([states, nn.functional.one_hot(groups.long(), len(self._space.choices))], 1)

    @staticmethod
    def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@ask_and_tell
def ddpg_entropy(state: SearchState, settings: DDPGSettings | None = None) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`. The evaluator's score is maximised."""
    settings = settings or DDPGSettings()
    problem, space = state.problem, state.space
    generator = np.random.default_rng(problem.seed)
    memory = _ReplayBuffer(len(space.choices), settings.memory)
    designed = round(settings.design_share * problem.trials)
    start = yield from start_and_design(state, min(settings.bisection_trials, problem.trials), designed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        agent = _Agent(space, start, settings)
    first, remembered = state.asked, len(problem.known)
    while state.asked < problem.trials and not state.exhausted:
        for answer in state.answers[remembered:]:
            _remember(memory, space, answer)
        remembered = len(state.answers)
        answers = believed(state)
        bound = _ActionBound(fit(space, answers, additive=True))
        model = fit(space, answers)
        spent = (state.asked - first) / (problem.trials - first)
        noise = settings.noise * (settings.last_noise / settings.noise) ** spent
        states, kept = agent.play(bound, problem.constraints, settings.model_episodes, noise, generator)
        predicted = model.predict(kept)
        memory.add(states, kept, predicted.score, predicted.violations)
        agent.learn(memory, generator)
        _, kept = agent.play(bound, problem.constraints, settings.proposals, noise, generator)
        yield from ask_best(state, model, kept, answers)


def _remember(memory: _ReplayBuffer, space: SearchSpace, answer: Evaluation) -> None:
    kept = fractions(space, answer.plan)[None]
    states = np.stack([observe(space, kept[:, :group]) for group in range(len(space.choices))], axis=1)
    memory.add(states, kept, np.asarray([answer.score]), np.asarray([answer.violations]))


def _truncated_normal(means: Floats, deviation: float, generator: np.random.Generator) -> Floats:
    """A normal sample; values outside [0, 1] are drawn again."""
    drawn = means + deviation * generator.standard_normal(len(means))
    while (outside := (drawn < 0) | (drawn > 1)).any():
        drawn[outside] = means[outside] + deviation * generator.standard_normal(int(outside.sum()))
    return drawn


def _mlp(inputs: int, hidden: int, last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1), last)
