"""Case: what one run of the walk is about. Made once, and handed to each phase that needs most of it."""

from dataclasses import dataclass

from pipeline.core.budget import Constraint
from pipeline.core.profile import Profile
from pipeline.core.progress import Callback
from pipeline.core.run import Run
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.training.task import Task

__all__ = ["RunContext"]


@dataclass(frozen=True)
class RunContext:
    """The network, what it is for, where it must fit, and where it is written down."""

    run: Run
    builder: PrunedModelBuilder
    """Of the dense network: any plan's module and ONNX file."""
    task: Task
    profile: Profile
    constraints: tuple[Constraint, ...]
    callback: Callback
