"""PPO-Lagrangian: the constrained agent of paper A (Malik et al., arXiv 2110.08558), one width per step.

Symbols are the paper's: rho = probability ratio, adv_r and adv_c = advantages of reward and cost, lam = multiplier.

    L = ( - E min(rho adv_r, clip(rho, 1 +- eps) adv_r) + sum_k lam_k E max(rho adv_c_k, clip(rho, 1 +- eps) adv_c_k) )
        / (1 + sum_k lam_k)

Differences from the paper's code, which ppo_faithful.py keeps:
 1. real channels are removed; theirs are masked weights.
 2. any number of constraints, each with its own cost critic and multiplier; theirs has one.
 3. the cost is the measured violation of the budget, not the share of weights.
 4. a Beta distribution, which lives on [0, 1]; their Gaussian is clipped and gathers at the ends.
 5. PID multipliers (see multiplier.py); theirs integrate with Adam at rate 1.
 6. between two measured episodes the agent plays many on a model fitted to all answers so far (model.py): a trial costs a
    measurement, and the paper spends thousands. What is kept is judged by measurements only.
 7. the measured episode is the most promising of many that the policy plays (promise.py), not a single sample.
 8. it starts from the best uniform plan, found by bisection, and, with thirty trials or more, from a scan of each group's
    widths around it.
 9. each group has a bias of its own in the policy; theirs must tell layers apart by their shape.
10. gamma = 1: episodes are short and everything comes at their end.
11. cost advantages are standardised like the reward's and clipped too, so that a multiplier means the same for every budget.
12. the state has what was removed so far (from AMC) in place of kernel, stride and padding. The budget, and the cost so far
    against it, are not in it: tried and level (docs/decisions/0018-the-cost-so-far.md).
13. what is kept is the best feasible episode, not a sample of the final policy.
14. rewards are scaled to the scores so far, 0 to 1, and states are shares from the start; theirs are over running deviations.
15. the multipliers move before the policy does, theirs after; ten times their learning rate, or more, for few episodes.
16. cost advantages have the lambda of the reward's, 0.95, and violations beyond the whole limit count as that; theirs have 1.
17. measured episodes are replayed through the model that is fitted to them: the policy itself learns from imagined ones.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.acquisition import highest_acquisition
from pipeline.search.initial_design import initial_design
from pipeline.search.policy import Agent, AgentSettings
from pipeline.search.problem import Evaluation, Problem
from pipeline.search.surrogate import fit, snap
from pipeline.search.uniform import bisect

__all__ = ["PPOLagrangianSettings", "ppo_lagrangian", "train"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PPOLagrangianSettings:
    """How trials and imagined episodes are spent."""

    bisection_trials: int = 6
    """Trials that go to finding the best uniform plan first."""
    scan_share: float = 0.2
    """Share of the trials that go to the sensitivity scan."""
    fewest_trials_to_scan: int = 30
    updates_per_trial: int = 4
    episodes_per_update: int = 64
    """Imagined ones."""
    proposals: int = 128
    agent: AgentSettings = field(default_factory=AgentSettings)


def ppo_lagrangian(problem: Problem) -> None:
    """Search with `problem.trials` judgements; see `Searcher`."""
    train(problem, PPOLagrangianSettings())


def train(problem: Problem, settings: PPOLagrangianSettings) -> Agent:
    """The agent as it is when the trials are spent."""
    answers = list(problem.known)

    def ask(plan: ChannelPlan) -> Evaluation:
        answers.append(problem.evaluate(plan))
        return answers[-1]

    asking = replace(problem, evaluate=ask)
    start = bisect(asking, min(settings.bisection_trials, problem.trials))
    if problem.trials >= settings.fewest_trials_to_scan:
        initial_design(asking, start, round(settings.scan_share * problem.trials))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        agent = Agent(problem.space, problem.constraints, start, settings.agent)
    generator = np.random.default_rng(problem.seed)
    last = len(problem.known) + problem.trials
    while len(answers) < last and len({answer.plan for answer in answers}) < problem.space.size:
        model = fit(problem.space, answers)
        scores = [answer.score for answer in answers]
        low, span = min(scores), (max(scores) - min(scores)) or 1.0  # a task of the user's own may score on any scale
        for _ in range(settings.updates_per_trial):
            episodes = agent.play(settings.episodes_per_update, generator)
            guess = model.guess(snap(problem.space, episodes.actions.astype(np.float64)))
            rewards = ((guess.score - low) / span).astype(np.float32)
            agent.learn(episodes, rewards, guess.violations.astype(np.float32), generator)
        kept = snap(problem.space, agent.play(settings.proposals, generator).actions.astype(np.float64))
        ask(problem.space.plan(kept[highest_acquisition(model, kept, answers)].tolist()))
    return agent
