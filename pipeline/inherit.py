"""Inherit: the weights that a narrowed network begins with, to be scored and fine-tuned: its share of the dense network's,
compensated for what is gone; or, under a tight budget, of a supernet's.
"""

from torch import nn

from pipeline.graph.compensate import start_compensation
from pipeline.graph.drafts import Drafts
from pipeline.graph.shrink import shrink
from pipeline.plan import ChannelPlan
from pipeline.run import Run
from pipeline.search.problem import SearchSpace
from pipeline.supernet import IMAGES, affordable_steps, middle_share, plans_around, train_supernet
from pipeline.task import Task
from pipeline.watch import Watcher

__all__ = ["Inheritance"]

KNOWING = 0.3
"""Share of the dense score above which a compensated cut tells good plans from bad ones, and is the better start."""


class Inheritance:
    """Makes the network of any plan, with weights but not yet trained."""

    def __init__(self, run: Run, drafts: Drafts, task: Task, watcher: Watcher) -> None:
        self._run, self._drafts, self._task, self._watcher = run, drafts, task, watcher
        self._compensation = start_compensation(drafts.module, drafts.space, (inputs for inputs, _ in task.calibration()))
        self._supernet: nn.Module | None = None

    def __call__(self, plan: ChannelPlan) -> nn.Module:
        """The network of `plan`, in evaluation mode; it may be changed."""
        kept = self._drafts.kept(plan)
        if self._supernet and plan != self._drafts.space.dense():
            return shrink(self._supernet, self._drafts.space, kept).eval()
        module = shrink(self._drafts.module, self._drafts.space, kept).eval()
        self._compensation.apply(module, kept)
        return module

    def settle(self, space: SearchSpace, share: float, dense_score: float, steps: int | None, seed: int) -> None:
        """Train a supernet, from which all plans inherit from now on, where that pays.

        `share`: of its channels that every group can keep within the budget. `steps`: by default as many as pay, and none
        where the uniform plan of `share` still answers well when it is cut. A task that has no images to train on gets none.
        What an earlier process decided in this run directory holds. Raises StorageError.
        """
        lessons = self._task.lessons(IMAGES)
        if lessons is None:
            return
        if steps is None:
            needed = self._run.supernet.is_file() or self._knows_too_little(space.uniform(share), dense_score)
            middle, dense = (self._drafts.make(space.uniform(width)).macs for width in (middle_share(share), 1.0))
            steps = affordable_steps(middle, dense, len(lessons)) if needed else 0
        if steps:
            plans = (self._drafts.kept(plan) for plan in plans_around(space, share, seed))
            module, groups, file = self._drafts.module, self._drafts.space, self._run.supernet
            self._supernet = train_supernet(module, groups, plans, lessons, steps, file, self._watcher.progress)

    def _knows_too_little(self, plan: ChannelPlan, dense_score: float) -> bool:
        if self._run.find("thinnest", 1):  # plans were scored before, and without a supernet
            return False
        score, enough = self._task.score(self(plan)), KNOWING * dense_score
        self._watcher.say(f"cut to these widths: score {score:.2f}; without a supernet from {enough:.2f} on")
        return score < enough
