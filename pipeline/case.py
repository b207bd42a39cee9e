"""Case: what one run of the walk is about. Made once, and handed to each phase that needs most of it."""

from dataclasses import dataclass

from pipeline.budget import Constraint
from pipeline.graph.drafts import Drafts
from pipeline.profile import Profile
from pipeline.run import Run
from pipeline.task import Task
from pipeline.watch import Watcher

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """The network, what it is for, where it must fit, and where it is written down."""

    run: Run
    drafts: Drafts
    """Of the dense network: any plan's module and ONNX file."""
    task: Task
    profile: Profile
    constraints: tuple[Constraint, ...]
    watcher: Watcher
