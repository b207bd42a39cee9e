"""Agents learn: on toys whose optimum is known from trying every plan."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from helpers.toys import CHAIN, CLIFF, RAGGED, SMOOTH, TOYS, Toy, best_feasible
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from pipeline.core.candidate import Candidate
from pipeline.search.ddpg_entropy import _ActionBound
from pipeline.search.policy import Agent
from pipeline.search.ppo_faithful import FaithfulSettings, SoftplusMultiplier
from pipeline.search.ppo_faithful import _Agent as FaithfulAgent
from pipeline.search.ppo_lagrangian import PPOLagrangianSettings, train
from pipeline.search.problem import Problem, SearcherFactory
from pipeline.search.searchers import SEARCHERS
from pipeline.search.surrogate import fit, snap
from pipeline.stages.reevaluate import FeasiblePlan, Reevaluated, best_reevaluated

pytestmark = pytest.mark.starts_first

LEARNERS = ("ppo-lagrangian", "ddpg-entropy")
SLOW = (*LEARNERS, "pretrained")
SEEDS = range(3)
one_seed_and_all = pytest.mark.parametrize(
    "seeds", [SEEDS[:1], pytest.param(SEEDS, marks=pytest.mark.slow)], ids=["one seed", "all seeds"]
)


def shares(name: str, toy: Toy, trials: int, seeds: range = SEEDS) -> list[float]:
    """Of the optimum, one for each seed."""
    return [best_feasible(toy.solve(SEARCHERS[name], trials, seed)) / toy.optimum() for seed in seeds]


@one_seed_and_all
@pytest.mark.parametrize(("name", "toy"), [("ppo-lagrangian", CLIFF), ("ddpg-entropy", RAGGED)])
def test_forty_trials_bring_an_agent_near_the_optimum(name: str, toy: Toy, seeds: range) -> None:
    """Costs in steps, and costs that fall when a width grows: the optimum of 6,561 plans, and of 729."""
    found = shares(name, toy, trials=40, seeds=seeds)

    assert min(found) >= 0.95
    assert np.mean(found) > np.mean(shares("random", toy, trials=40))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LEARNERS, "knapsack", "tpe", "greedy"])
@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_sixty_trials_bring_a_searcher_near_the_optimum(name: str, toy: Toy) -> None:
    """Three to five groups; straight costs, steps, falls, products of neighbours, and a score without falling returns."""
    found = shares(name, toy, trials=60)

    assert min(found) >= 0.95
    assert np.mean(found) > np.mean(shares("random", toy, trials=60))


@pytest.mark.parametrize("name", LEARNERS)
def test_an_agent_asks_for_the_best_uniform_plan_before_it_plays(name: str) -> None:
    """widths are multiples of 8: of 64 channels 32, 16, 24, and no other uniform plan lies between"""
    uniform, asked = (CHAIN.solve(SEARCHERS[each], trials=4, seed=0) for each in ("uniform", name))

    assert [found.plan for found in asked[:3]] == [found.plan for found in uniform]


def converged(toy: Toy, trials: int, seed: int) -> tuple[Agent, Problem]:
    problem = Problem(toy.space, toy.evaluation_of, trials, constraints=1, seed=seed)
    return train(problem, PPOLagrangianSettings()), problem


@one_seed_and_all
def test_after_convergence_the_policy_itself_keeps_the_limit(seeds: range) -> None:
    """Not only the plan that is kept: the mean of what the policy would play, within 2 % of a limit that binds."""
    violations = []
    for seed in seeds:
        agent, problem = converged(SMOOTH, 40, seed)
        played = agent.play(300, np.random.default_rng(seed)).actions.astype(np.float64)
        violations.append(SMOOTH.violations(snap(problem.space, played)).mean())

    assert np.mean(np.abs(violations)) <= 0.02


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in SEARCHERS])
def test_what_is_kept_of_a_noisy_search_keeps_the_limit(name: str) -> None:
    """The search sees costs with an error of 3 %, so the best that it saw is often over; a second look sees them to half a percent."""
    asked = replace(CHAIN, noise=0.03).solve(SEARCHERS[name], trials=25, seed=2)
    best_first = sorted((found for found in asked if found.feasible), key=lambda found: -found.score)

    def look_again(plan: FeasiblePlan) -> Reevaluated:
        most = CHAIN.evaluation_of(plan.candidate.plan).violations[0] + 0.005
        return Reevaluated(plan.candidate, most <= 0, (1 + most,))

    ranked = [
        FeasiblePlan(Candidate(each.plan, 0, 0, 0, "", None, each.score), each.score, (1 + each.violations[0],))
        for each in best_first
    ]
    kept = best_reevaluated(ranked, look_again)

    assert kept
    true = CHAIN.evaluation_of(kept.candidate.plan)
    assert true.violations[0] <= 0
    assert true.score > CHAIN.evaluation_of(CHAIN.space.thinnest()).score


def test_the_wall_leaves_enough_for_what_comes_behind() -> None:
    """Wishes to keep everything: whatever is spent on the first groups, the last are not pushed over the limit."""
    answers = [SMOOTH.evaluation_of(SMOOTH.space.plan(row.tolist())) for row in np.random.default_rng(0).random((40, 4))]
    wall = _ActionBound(fit(SMOOTH.space, answers, additive=True))
    spent, kept = np.zeros((1, 1)), []
    for group in range(4):
        fraction, spent = wall.nearest_allowed(group, spent, np.ones(1))
        kept.append(float(fraction[0]))

    assert kept[0] == 1.0
    assert SMOOTH.violations(np.asarray(kept)) == pytest.approx(0.0, abs=0.02)


def test_the_papers_multiplier_begins_at_one_and_integrates() -> None:
    multiplier = SoftplusMultiplier(rate=1.0)
    history = [multiplier.value]
    for excess in [10.0] * 3 + [-10.0] * 8:
        multiplier.update(excess)
        history.append(multiplier.value)

    assert history[0] == pytest.approx(1.0)
    assert history[:4] == sorted(history[:4])
    assert history[-1] < history[3]


@pytest.mark.slow
def test_the_papers_agent_learns_with_thousands_of_episodes_and_overshoots() -> None:
    """First it prunes until the cost is far below the limit; the multiplier falls, and it gets back what it gave away."""
    asked = SMOOTH.solve(SEARCHERS["ppo-lagrangian-faithful"], trials=3000, seed=0)
    columns = zip(*((each.violations[0], each.score) for each in asked), strict=True)
    violations, scores = (np.asarray(column).reshape(10, 300).mean(1) for column in columns)

    assert violations[0] > 0.3
    assert violations.min() < -0.3
    assert scores[-1] > scores.min() + 20


def test_the_papers_agent_scales_rewards_as_stable_baselines_does() -> None:
    """Sixteen steps, all pay at the end: scores near 90 with a spread of 2, one after another."""
    scores = (90 + 2 * np.random.default_rng(0).standard_normal(24)).tolist()

    class Scripted(gymnasium.Env[NDArray[np.float32], Any]):
        observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self) -> None:
            self._pays = iter([pay for score in scores for pay in [*[0.0] * 15, score]])
            self._step = 0

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
            self._step = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
            self._step += 1
            return np.zeros(1, np.float32), next(self._pays), self._step == 16, False, {}

    theirs = VecNormalize(DummyVecEnv([Scripted]), gamma=0.99)
    theirs.reset()
    wanted = [float(theirs.step(np.zeros(1, np.int64))[1][0]) for _ in range(16 * len(scores))][15::16]

    agent = FaithfulAgent(FaithfulSettings())
    found = [float(agent.scale(np.asarray([score, 100.0]), 16)[0]) for score in scores]

    assert found == pytest.approx(wanted, rel=1e-5)
    assert max(found[4:]) < 10  # or they would be clipped, and all be the same


@pytest.mark.parametrize("name", LEARNERS)
def test_an_agent_ends_when_it_has_asked_about_every_plan(name: str) -> None:
    """One group of nine widths, of which the dense and the thinnest are known, and forty trials."""
    asked = Toy(value=(1.0,), curve=(3.0,), cost=(1.0,)).solve(SEARCHERS[name], trials=40, seed=0)

    assert len({found.plan for found in asked}) == 7
    assert len(asked) < 30


def documented() -> dict[str, SearcherFactory]:
    """The names that the example in the documentation defines."""
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    block = next(found for found in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "PruningEnv(" in found)
    names: dict[str, SearcherFactory] = {}
    exec(block, names)  # type: ignore[arg-type]
    return names


@pytest.fixture(scope="module")
def own_agent() -> Callable[[Problem], None]:
    return documented()["sac"]


def test_an_agent_of_ones_own_searches_as_the_documentation_says(own_agent: SearcherFactory) -> None:
    asked = RAGGED.solve(own_agent, trials=20, seed=0)

    assert 1 <= len(asked) <= 20
    assert [found.plan for found in asked] == [found.plan for found in RAGGED.solve(own_agent, trials=20, seed=0)]
