"""The searchers by name."""

from pipeline.search.ddpg_entropy import ddpg_entropy
from pipeline.search.greedy import greedy
from pipeline.search.knapsack import knapsack
from pipeline.search.optuna_search import evolution, tpe
from pipeline.search.ppo_lagrangian import ppo_lagrangian
from pipeline.search.problem import Searcher
from pipeline.search.random_search import random_search
from pipeline.search.uniform import uniform

__all__ = ["DEFAULT_SEARCHER", "SEARCHERS"]

DEFAULT_SEARCHER = "ppo-lagrangian"
SEARCHERS: dict[str, Searcher] = {
    DEFAULT_SEARCHER: ppo_lagrangian,
    "ddpg-entropy": ddpg_entropy,
    "greedy": greedy,
    "knapsack": knapsack,
    "evolution": evolution,
    "tpe": tpe,
    "uniform": uniform,
    "random": random_search,
}
