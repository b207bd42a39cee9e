"""The searchers by name."""

from pipeline.search.ppo_lagrangian import ppo_lagrangian
from pipeline.search.problem import Searcher
from pipeline.search.random_search import random_search
from pipeline.search.uniform import uniform

__all__ = ["DEFAULT_SEARCHER", "SEARCHERS"]

DEFAULT_SEARCHER = "ppo-lagrangian"
SEARCHERS: dict[str, Searcher] = {
    DEFAULT_SEARCHER: ppo_lagrangian,
    "uniform": uniform,
    "random": random_search,
}
