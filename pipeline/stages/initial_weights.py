"""Inherit: the weights that a narrowed network begins with, to be scored and fine-tuned: its share of the dense network's,
compensated for what is gone; or, under a tight budget, of a supernet's.
"""

from collections.abc import Callable

from torch import nn

from pipeline.core.plan import ChannelPlan
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.search.problem import SearchSpace
from pipeline.stages.context import RunContext
from pipeline.stages.supernet import IMAGES, affordable_steps, middle_share, plans_around, train_supernet

__all__ = ["InitialWeights"]

KNOWING = 0.2
"""Of the way from guessing to the dense score: from here on a compensated cut tells good plans from bad ones, and is the better
start.
"""


class InitialWeights:
    """Makes the network of any plan, with weights but not yet trained."""

    def __init__(self, context: RunContext) -> None:
        self._run, self._drafts, self._task, self._callback = context.run, context.builder, context.task, context.callback
        inputs = (batch for batch, _ in context.task.calibration())
        self._reconstruction = start_reconstruction(context.builder.module, context.builder.space, inputs)
        self._supernet: nn.Module | None = None
        self.notices: list[str] = []

    def __call__(self, plan: ChannelPlan) -> nn.Module:
        """The network of `plan`, in evaluation mode; it may be changed."""
        kept = self._drafts.kept(plan)
        if self._supernet and plan != self._drafts.space.dense():
            return shrink(self._supernet, self._drafts.space, kept).eval()
        module = shrink(self._drafts.module, self._drafts.space, kept).eval()
        self._reconstruction.apply(module, kept)
        return module

    def settle(
        self, space: SearchSpace, widest: Callable[[SearchSpace], float], dense_score: float, steps: int | None, seed: int
    ) -> None:
        """Train a supernet, from which all plans inherit from now on, where that pays.

        `widest` tells the share of its channels that every group can keep within the budget. `steps`: by default as many as
        pay, and none where the uniform plan of that share still answers well when it is cut. A task that has no images to
        train on gets none. What was decided is written down, and holds when the run is resumed. Raises StorageError.
        """
        distillation_images = self._task.distillation_images(IMAGES) if steps != 0 else None
        if distillation_images is None:
            return
        share = widest(space)
        decided = self._run.facts("weights") or {"supernet_steps": steps}
        if decided["supernet_steps"] is None:
            decided = {"supernet_steps": self._steps_that_pay(space, share, dense_score, len(distillation_images))}
        self._run.bind("weights", decided)
        if decided["supernet_steps"]:
            plans = (self._drafts.kept(plan) for plan in plans_around(space, share, seed))
            module, groups, file = self._drafts.module, self._drafts.space, self._run.supernet
            steps = int(decided["supernet_steps"])
            self._supernet = train_supernet(module, groups, plans, distillation_images, steps, file, self._callback.progress)
            self._note(f"plans were scored with the weights of a supernet, trained for {steps} steps, and fine-tuned from them")

    def _steps_that_pay(self, space: SearchSpace, share: float, dense_score: float, images: int) -> int:
        score, chance_level = self._task.score(self(space.uniform(share))), self._task.chance_level
        enough = chance_level + KNOWING * (dense_score - chance_level)
        self._callback.say(
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
        self._callback.notice(notice)
