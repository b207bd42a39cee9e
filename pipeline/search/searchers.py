"""The searchers by name. A searcher's module is imported only when it is used, because some need torch or Optuna."""

import importlib
from collections.abc import Iterator, Mapping

from pipeline.search.problem import Reward, SearcherFactory

__all__ = ["DEFAULT_SEARCHER", "SEARCHERS", "starts_on_path", "usual_reward"]

DEFAULT_SEARCHER = "ppo-lagrangian"


class _Searchers(Mapping[str, SearcherFactory]):
    """Maps names to searchers."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> SearcherFactory:
        module, _, function = self._places[name].partition(":")
        searcher: SearcherFactory = getattr(importlib.import_module(f"pipeline.search.{module}"), function)
        return searcher

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


SEARCHERS: Mapping[str, SearcherFactory] = _Searchers(
    {
        DEFAULT_SEARCHER: "ppo_lagrangian:ppo_lagrangian",
        "pretrained": "pretrained:pretrained",
        "ppo-lagrangian-faithful": "ppo_faithful:ppo_lagrangian_faithful",
        "ddpg-entropy": "ddpg_entropy:ddpg_entropy",
        "surrogate": "surrogate_search:surrogate_search",
        "greedy": "greedy:greedy",
        "knapsack": "knapsack:knapsack",
        "evolution": "optuna_search:evolution",
        "tpe": "optuna_search:tpe",
        "uniform": "uniform:uniform",
        "uniform-top-up": "uniform_top_up:uniform_top_up",
        "random": "random_search:random_search",
    }
)


def starts_on_path(searcher: str) -> bool:
    """Whether a searcher evaluates plans of `Problem.path` first, if there is one."""
    return searcher in (DEFAULT_SEARCHER, "knapsack", "surrogate", "evolution", "tpe")


def usual_reward(searcher: str) -> Reward:
    """The reward that a searcher was made for. Every searcher can use another one."""
    return "spatial-entropy" if searcher == "ddpg-entropy" else "accuracy"
