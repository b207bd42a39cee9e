"""Pretrained: a search that starts on the proposals of the amortised policy, and adapts them by PPO-Lagrangian.

 1. The dense network's violation says which share of its latency is allowed. The first trial is the policy's plan for that share.
    Two or three more trials on the policy's path find the plan that just meets the budget.
 2. A few plans around it show how score and cost react.
 3. As in ppo_lagrangian.py, an agent that starts at this plan learns on a surrogate between two trials. The next plan is the one
    with the highest acquisition value of the agent's proposals and of mutations of the best plans.

Without the policy's plan, this is `ppo-lagrangian` with mutations. Without the agent, it is `surrogate` with another start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.acquisition import ask_best
from pipeline.search.amortised_policy import path_of_policy
from pipeline.search.ask_tell import WAIT, Questions, SearchState, ask_and_tell
from pipeline.search.believe import believed
from pipeline.search.policy import AgentSettings
from pipeline.search.ppo_lagrangian import learn_on_surrogate, new_agent
from pipeline.search.problem import Evaluation, Problem, Searcher, SearchSpace
from pipeline.search.surrogate import fit, fractions, snap
from pipeline.search.surrogate_search import best_plans, mutations

__all__ = ["PretrainedSettings", "allowed_share", "pretrained", "search_from_path"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PretrainedSettings:
    """How trials and proposals are spent."""

    path_trials: int = 4
    """Most trials on the path."""
    near: float = 0.03
    """The path is left when a plan uses at least this share less than the whole budget."""
    design_share: float = 0.1
    """Share of the trials for plans around the best one of the path."""
    spread: float = 0.12
    """Standard deviation of their fractions."""
    proposals: int = 128
    """Of the agent. There are as many mutations of the best plans."""
    small_reach: float = 0.07
    """Standard deviation of the small changes of mutations, as a share of a group's channels."""
    updates_per_trial: int = 2
    episodes_per_update: int = 64
    agent: AgentSettings | None = field(default_factory=lambda: AgentSettings(concentration=20.0))
    """None: mutations only, four times as many."""


@ask_and_tell
def pretrained(state: SearchState) -> Questions[None]:
    """Search with `problem.trials` evaluations; see `Searcher`. A path of the problem's own replaces the policy's."""
    path = state.problem.path or path_of_policy(state.space)
    yield from _from_path(state, path, PretrainedSettings())


def search_from_path(problem: Problem, path: Callable[[float], ChannelPlan], settings: PretrainedSettings) -> Searcher:
    """The same searcher on another path, or with other settings."""
    return ask_and_tell(_from_path)(problem, path, settings)


def _from_path(state: SearchState, path: Callable[[float], ChannelPlan], settings: PretrainedSettings) -> Questions[None]:
    space, trials = state.space, state.problem.trials
    generator = np.random.default_rng(state.problem.seed)
    yield from _follow(state, path, settings)
    if not state.answers:
        return
    start = fractions(space, best_plans([*state.others, *state.answers])[0].plan)
    for row in _around(space, start, round(settings.design_share * trials), settings.spread, generator):
        plan = space.plan(row.tolist())
        if state.asked < trials and plan not in {*(answer.plan for answer in state.answers), *state.pending}:
            yield plan
    agent = new_agent(state.problem, start, settings.agent) if settings.agent else None
    while state.asked < trials and not state.exhausted:
        answers = believed(state)
        model = fit(space, answers)
        count = settings.proposals * (1 if agent else 4)
        kept = mutations(space, best_plans(answers), generator, count, settings.small_reach)
        if agent is not None:
            for _ in range(settings.updates_per_trial):
                learn_on_surrogate(agent, model, answers, settings.episodes_per_update, generator)
            played = agent.play(settings.proposals, generator).actions.astype(np.float64)
            kept = np.concatenate([kept, snap(space, played)])
        yield from ask_best(state, model, kept, answers)


def allowed_share(known: Sequence[Evaluation]) -> float:
    """The share of the dense network's cost that the tightest budget allows, from the dense plan's evaluation, which is first.

    A violation is cost / limit - 1. One half if nothing is known, or if the dense network is within all budgets.
    """
    worst = max(known[0].violations, default=0.0) if known else 0.0
    return 1 / (1 + worst) if worst > 0 else 0.5


def _follow(state: SearchState, path: Callable[[float], ChannelPlan], settings: PretrainedSettings) -> Questions[None]:
    """Ask for plans of `path` until one is just within the budget. The next share follows from the last violation."""
    share, low, high = allowed_share(state.problem.known), 0.0, 1.0
    for _ in range(min(settings.path_trials, state.problem.trials)):
        plan = path(share)
        if plan in {answer.plan for answer in state.answers}:
            return
        yield plan
        yield WAIT
        worst = max(state.answers[-1].violations, default=0.0)
        if -settings.near <= worst <= 0:
            return
        low, high = (low, share) if worst > 0 else (share, high)
        wanted = share / max(1 + worst + settings.near / 2, 0.2)
        share = wanted if low < wanted < high else (low + high) / 2


def _around(space: SearchSpace, start: Floats, count: int, spread: float, generator: np.random.Generator) -> Floats:
    """`count` plans around `start`, in pairs with opposite changes. Blocks stay as they are."""
    half = generator.standard_normal(((count + 1) // 2, len(start)))
    changes = np.stack([half, -half], axis=1).reshape(-1, len(start))[:count]
    changes[:, [choice.is_block for choice in space.choices]] = 0.0
    return np.clip(start + spread * changes, 0.0, 1.0)
