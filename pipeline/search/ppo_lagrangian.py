"""PPO-Lagrangian: the constrained agent of paper A (Malik et al., arXiv 2110.08558), one width per step.

Symbols are the paper's: rho = probability ratio, adv_r and adv_c = advantages of reward and cost, lam = multiplier.

    L = ( - E min(rho adv_r, clip(rho, 1 +- eps) adv_r) + sum_k lam_k E max(rho adv_c_k, clip(rho, 1 +- eps) adv_c_k) )
        / (1 + sum_k lam_k)

Differences from the paper's code, which ppo_faithful.py keeps:
 1. Real channels are removed. The paper masks weights.
 2. There can be any number of constraints, each with a cost critic and a multiplier. The paper has one.
 3. The cost is the measured constraint violation. The paper's is the share of weights.
 4. The policy is a Beta distribution on [0, 1]. The paper's Gaussian is clipped and piles up at both ends.
 5. Multipliers are PID controllers (lagrange_multipliers.py). The paper's integrate with Adam at rate 1.
 6. Between two measured episodes the agent plays many model-based rollouts on a surrogate that is fitted to all evaluations so
    far (surrogate.py). A trial costs a measurement here; the paper spends thousands. Only measured plans are ever kept.
 7. The measured episode is the one with the highest acquisition value of many (acquisition.py). The paper takes one sample.
 8. The search starts from the best uniform plan, found by bisection, from a plan without some of its blocks (start.py), or with
    few pictures from one by the sensitivity of each group (sensitivity.py). With thirty trials or more, a sample of widths around
    it follows (initial_design.py).
 9. Each group has its own bias in the policy. The paper's policy tells layers apart only by their shape.
10. gamma = 1, because episodes are short and the reward comes at their end.
11. Cost advantages are standardised and clipped like the reward's, so a multiplier means the same for every budget.
12. The state has the share that was removed so far (from AMC) in place of kernel, stride and padding. The budget and the cost so
    far are not in the state: with them results were equal (docs/decisions/0018-the-cost-so-far.md).
13. The result is the best feasible episode, not a sample of the final policy.
14. Rewards are scaled to the scores so far, 0 to 1, and states are shares. The paper divides both by running deviations.
15. The multipliers are updated before the policy; the paper updates them after it. The learning rate is at least ten times the
    paper's, because there are few episodes.
16. Cost advantages use the reward's lambda, 0.95, and a violation counts as at most 1. The paper has lambda 1 and no limit.
17. Measured episodes reach the policy through the surrogate that is fitted to them. The policy itself learns from rollouts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.search.acquisition import ask_best
from pipeline.search.ask_tell import Questions, SearchState, answered, ask_and_tell
from pipeline.search.believe import believed
from pipeline.search.policy import Agent, AgentSettings
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.start import Beginning, begin
from pipeline.search.surrogate import Surrogate, fit, snap

__all__ = ["PPOLagrangianSettings", "learn_on_surrogate", "new_agent", "ppo_lagrangian", "train"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PPOLagrangianSettings:
    """How trials and model-based rollouts are spent."""

    beginning: Beginning = field(default_factory=Beginning)
    updates_per_trial: int = 4
    episodes_per_update: int = 64
    """Model-based rollouts."""
    proposals: int = 128
    agent: AgentSettings = field(default_factory=AgentSettings)


@ask_and_tell
def ppo_lagrangian(state: SearchState) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`."""
    yield from _training(state, PPOLagrangianSettings())


def train(problem: Problem, settings: PPOLagrangianSettings) -> Agent:
    """Search with `problem.evaluate`, and return the trained agent."""
    return answered(problem, _training, settings)


def _training(state: SearchState, settings: PPOLagrangianSettings) -> Questions[Agent]:
    """The agent learns once for all plans that are wanted at once."""
    problem = state.problem
    start = yield from begin(state, settings.beginning)
    agent = new_agent(problem, start, settings.agent)
    generator = np.random.default_rng(problem.seed)
    while state.asked < problem.trials and not state.exhausted:
        answers = believed(state)
        model = fit(problem.space, answers)
        for _ in range(settings.updates_per_trial):
            learn_on_surrogate(agent, model, answers, settings.episodes_per_update, generator)
        kept = snap(problem.space, agent.play(settings.proposals, generator).actions.astype(np.float64))
        yield from ask_best(state, model, kept, answers)
    return agent


def new_agent(problem: Problem, start: Floats, settings: AgentSettings) -> Agent:
    """An agent whose first policy is near the fractions `start`, (choices,). The seed of the problem decides its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        return Agent(problem.space, problem.constraints, start, settings)


def learn_on_surrogate(
    agent: Agent, model: Surrogate, answers: Sequence[Evaluation], episodes: int, generator: np.random.Generator
) -> None:
    """One update of `agent` from `episodes` rollouts on `model`, which is fitted to `answers`."""
    scores = [answer.score for answer in answers]
    low, span = min(scores), (max(scores) - min(scores)) or 1.0  # a user's task may score on any scale
    played = agent.play(episodes, generator)
    predicted = model.predict(snap(model.space, played.actions.astype(np.float64)))
    rewards = ((predicted.score - low) / span).astype(np.float32)
    agent.learn(played, rewards, predicted.violations.astype(np.float32), generator)
