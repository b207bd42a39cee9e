"""Inherit: the weights that a narrowed network begins with, to be scored and fine-tuned: its share of the dense network's,
compensated for what is gone; or, under a tight budget, of a supernet's.
"""

from collections.abc import Callable

from torch import nn

from pipeline.case import Case
from pipeline.graph.compensate import start_compensation
from pipeline.graph.shrink import shrink
from pipeline.plan import ChannelPlan
from pipeline.search.problem import SearchSpace
from pipeline.supernet import IMAGES, affordable_steps, middle_share, plans_around, train_supernet

__all__ = ["Inheritance"]

KNOWING = 0.2
"""Of the way from guessing to the dense score: from here on a compensated cut tells good plans from bad ones, and is the better
start.
"""


class Inheritance:
    """Makes the network of any plan, with weights but not yet trained."""

    def __init__(self, case: Case) -> None:
        self._run, self._drafts, self._task, self._watcher = case.run, case.drafts, case.task, case.watcher
        inputs = (batch for batch, _ in case.task.calibration())
        self._compensation = start_compensation(case.drafts.module, case.drafts.space, inputs)
        self._supernet: nn.Module | None = None
        self.notices: list[str] = []

    def __call__(self, plan: ChannelPlan) -> nn.Module:
        """The network of `plan`, in evaluation mode; it may be changed."""
        kept = self._drafts.kept(plan)
        if self._supernet and plan != self._drafts.space.dense():
            return shrink(self._supernet, self._drafts.space, kept).eval()
        module = shrink(self._drafts.module, self._drafts.space, kept).eval()
        self._compensation.apply(module, kept)
        return module

    def settle(
        self, space: SearchSpace, widest: Callable[[SearchSpace], float], dense_score: float, steps: int | None, seed: int
    ) -> None:
        """Train a supernet, from which all plans inherit from now on, where that pays.

        `widest` tells the share of its channels that every group can keep within the budget. `steps`: by default as many as
        pay, and none where the uniform plan of that share still answers well when it is cut. A task that has no images to
        train on gets none. What was decided is written down, and holds when the run is resumed. Raises StorageError.
        """
        lessons = self._task.lessons(IMAGES) if steps != 0 else None
        if lessons is None:
            return
        share = widest(space)
        decided = self._run.facts("weights") or {"supernet_steps": steps}
        if decided["supernet_steps"] is None:
            decided = {"supernet_steps": self._steps_that_pay(space, share, dense_score, len(lessons))}
        self._run.bind("weights", decided)
        if decided["supernet_steps"]:
            plans = (self._drafts.kept(plan) for plan in plans_around(space, share, seed))
            module, groups, file = self._drafts.module, self._drafts.space, self._run.supernet
            steps = int(decided["supernet_steps"])
            self._supernet = train_supernet(module, groups, plans, lessons, steps, file, self._watcher.progress)
            self._note(f"plans were scored with the weights of a supernet, trained for {steps} steps, and fine-tuned from them")

    def _steps_that_pay(self, space: SearchSpace, share: float, dense_score: float, images: int) -> int:
        score, guess = self._task.score(self(space.uniform(share))), self._task.guess
        enough = guess + KNOWING * (dense_score - guess)
        self._watcher.say(
            f"{100 * share:.0f} % of all channels, cut: score {score:.2f}; {enough:.2f} is enough to tell plans apart"
        )
        if score >= enough:
            return 0
        middle, dense = (self._drafts.make(space.uniform(width)).macs for width in (middle_share(share), 1.0))
        steps = affordable_steps(middle, dense, images)
        if not steps:
            self._note(
                f"the budget is so tight that a cut network scores {score:.2f}, and this one too large to train a supernet "
                "in minutes: scores tell little; --supernet 500 trains one all the same"
            )
        return steps

    def _note(self, notice: str) -> None:
        self.notices.append(notice)
        self._watcher.notice(notice)
