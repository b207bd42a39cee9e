"""PruningEnv: a Gymnasium environment like any other."""

from dataclasses import replace

import numpy as np
from helpers.toys import SMOOTH
from stable_baselines3.common.env_checker import check_env

from pipeline.search.environment import FEATURES, PruningEnv
from pipeline.search.problem import Problem, SearchSpace


def environment() -> PruningEnv:
    return PruningEnv(Problem(SMOOTH.space, SMOOTH.evaluation_of, trials=1000, constraints=1, seed=0))


def test_it_passes_the_checker_of_stable_baselines() -> None:
    check_env(environment(), warn=False)


def test_an_episode_decides_every_group_once_and_pays_at_its_end() -> None:
    env = environment()
    env.reset()
    steps = [env.step(np.array([0.5], dtype=np.float32)) for _ in SMOOTH.space.choices]

    assert [reward for _, reward, _, _, _ in steps[:-1]] == [0.0, 0.0, 0.0]
    assert [done for _, _, done, _, _ in steps] == [False, False, False, True]
    assert steps[-1][1] == SMOOTH.evaluation_of(SMOOTH.space.uniform(0.5)).score / 100
    assert steps[-1][4]["evaluation"] == SMOOTH.evaluation_of(SMOOTH.space.uniform(0.5))


def test_the_state_tells_what_was_already_removed() -> None:
    """First group cut to a quarter: three quarters of what hangs on it are gone."""
    env = environment()
    before, _ = env.reset()
    after, *_ = env.step(np.array([0.25], dtype=np.float32))
    removed = FEATURES.index("macs_removed")

    assert before[removed] == 0
    assert np.isclose(after[removed], 0.75 * SMOOTH.space.choices[0].macs_share)


def test_shares_of_layers_that_hang_on_two_groups_are_told_to_the_end() -> None:
    """Each of four groups carries 0.475 of the arithmetic, 1.9 in all: with each at a half, an eighth of it goes at each step."""
    choices = tuple(replace(choice, macs_share=0.475, params_share=0.475) for choice in SMOOTH.space.choices)
    problem = Problem(SearchSpace(choices), SMOOTH.evaluation_of, trials=1000, constraints=1, seed=0)
    env = PruningEnv(problem)
    env.reset()
    seen = [env.step(np.array([0.5], dtype=np.float32))[0] for _ in choices[1:]]

    for feature, steps in {"macs_decided": (0.25, 0.5, 0.75), "macs_removed": (0.125, 0.25, 0.375)}.items():
        assert np.allclose([state[FEATURES.index(feature)] for state in seen], steps)


def test_actions_outside_the_box_are_clipped() -> None:
    env = environment()
    env.reset()
    for _ in SMOOTH.space.choices:
        _, _, done, _, info = env.step(np.array([7.0], dtype=np.float32))

    assert done
    assert info["evaluation"].plan == SMOOTH.space.dense()
