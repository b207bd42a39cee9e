"""Compress a trained vision network until it meets a measured budget on a device, and prove it.

    from pipeline import Job, compress

    finished = compress(Job(target="raspberrypi"))

Importing this package imports neither torch nor Optuna. Each name below is imported when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pipeline.system.thread_settings import settle_threads

if TYPE_CHECKING:
    from pipeline.compress import compress, compress_budgets
    from pipeline.core.budget import Limit, Metric
    from pipeline.packaging.pack import load_compressed
    from pipeline.search.problem import Problem
    from pipeline.stages.job import Job
    from pipeline.training.task import OwnTask

__all__ = ["Job", "Limit", "Metric", "OwnTask", "Problem", "compress", "compress_budgets", "load_compressed"]

_PLACES = {
    "Job": "pipeline.stages.job",
    "Limit": "pipeline.core.budget",
    "Metric": "pipeline.core.budget",
    "OwnTask": "pipeline.training.task",
    "Problem": "pipeline.search.problem",
    "compress": "pipeline.compress",
    "compress_budgets": "pipeline.compress",
    "load_compressed": "pipeline.packaging.pack",
}

settle_threads()  # here, because nothing of this package can import torch before


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing `pipeline.compress` would make the module an attribute of this package; the function of that name goes first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PLACES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
