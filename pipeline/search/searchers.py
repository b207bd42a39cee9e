"""The searchers by name."""

from pipeline.search.ddpg_entropy import ddpg_entropy
from pipeline.search.greedy import greedy
from pipeline.search.knapsack import knapsack
from pipeline.search.optuna_search import evolution, tpe
from pipeline.search.ppo_faithful import ppo_lagrangian_faithful
from pipeline.search.ppo_lagrangian import ppo_lagrangian
from pipeline.search.problem import Reward, Searcher
from pipeline.search.random_search import random_search
from pipeline.search.uniform import uniform

__all__ = ["DEFAULT_SEARCHER", "SEARCHERS", "usual_reward"]

DEFAULT_SEARCHER = "ppo-lagrangian"
SEARCHERS: dict[str, Searcher] = {
    DEFAULT_SEARCHER: ppo_lagrangian,
    "ppo-lagrangian-faithful": ppo_lagrangian_faithful,
    "ddpg-entropy": ddpg_entropy,
    "greedy": greedy,
    "knapsack": knapsack,
    "evolution": evolution,
    "tpe": tpe,
    "uniform": uniform,
    "random": random_search,
}


def usual_reward(searcher: str) -> Reward:
    """What a searcher was made for; any of them can be given another."""
    return "spatial-entropy" if searcher == "ddpg-entropy" else "accuracy"
