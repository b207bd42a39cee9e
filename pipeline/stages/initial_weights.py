"""Initial weights: the weights that a pruned network starts with. They are scored and then fine-tuned.

They are cut from the dense network, and a least-squares reconstruction makes up for the removed channels. Under a tight budget
they are cut from a supernet.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import safetensors.torch
from torch import nn

from pipeline.core.plan import ChannelPlan
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.graph.reconstruct import Reconstruction, start_reconstruction
from pipeline.graph.shrink import shrink
from pipeline.search.problem import SearchSpace
from pipeline.stages.context import RunContext
from pipeline.stages.supernet import IMAGES, Schedule, affordable_steps, middle_share, plans_around, train_supernet
from pipeline.training.scoring import measure_shifts
from pipeline.training.statistics_shift import Shifts, kept_shifts, set_shifts

__all__ = ["InitialWeights", "cut_from_dense", "cut_from_supernet"]

ENOUGH = 0.2
"""Share of the way from chance level to the dense score. From here on, the scores of cut networks rank plans well enough, and
fine-tuning starts better from the cut weights.
"""


@dataclass(frozen=True)
class InitialWeights:
    """Makes the torch network of any plan, with weights that are not fine-tuned yet."""

    context: RunContext
    reconstruction: Reconstruction
    supernet: nn.Module | None = None
    """The network that the weights are cut from; None for the dense network."""
    shifts: Shifts = field(default_factory=dict)
    """How estimated BatchNorm statistics are corrected. None with many pictures."""

    def of(self, plan: ChannelPlan) -> nn.Module:
        """The network of `plan`, in evaluation mode. It is a new module, and the caller may change it."""
        return self.cut()(plan)

    def cut(self) -> Callable[[ChannelPlan], nn.Module]:
        """Return `of` as a function without the run, so that it can be sent to another process."""
        return partial(_cut, self.context.builder, self.reconstruction, self.supernet, self.shifts)


def _cut(
    builder: PrunedModelBuilder, reconstruction: Reconstruction, supernet: nn.Module | None, shifts: Shifts, plan: ChannelPlan
) -> nn.Module:
    kept = builder.kept(plan)
    if supernet and plan != builder.space.dense():
        module = shrink(supernet, builder.space, kept).eval()
    else:
        module = shrink(builder.module, builder.space, kept).eval()
        reconstruction.apply(module, kept)
    set_shifts(module, kept_shifts(shifts, builder.space, kept))
    return module


def cut_from_dense(context: RunContext) -> InitialWeights:
    """Initial weights that are cut from the dense network. Runs the network once over the task's statistics batches, and with few
    pictures once more.
    """
    dense, task, progress = context.builder.module, context.task, context.callback.progress
    inputs = (batch for batch, _ in task.calibration(progress))
    reconstruction = start_reconstruction(dense, context.builder.space, inputs)
    shifts = measure_shifts(dense, task.statistics_images()) if task.few_pictures else {}
    return InitialWeights(context, reconstruction, shifts=shifts)


def cut_from_supernet(
    weights: InitialWeights,
    space: SearchSpace,
    widest: Callable[[], float],
    dense_score: float,
    steps: int | None,
    seed: int,
) -> InitialWeights:
    """Train a supernet and cut the initial weights from it. Returns `weights` unchanged if a supernet does not pay.

    `widest` measures the share of its channels that every group can keep within the budget. If `steps` is None, training takes as
    many steps as pay, and none if the uniform plan of that share still scores well when it is cut. A task without training images
    gets no supernet. The journal keeps the decision for a resumed run. Raises StorageError.
    """
    context = weights.context
    images = context.task.distillation_images(IMAGES) if steps != 0 else None
    if images is None:
        return weights
    share = widest()
    decided = context.run.facts("weights") or {"supernet_steps": steps}
    if decided["supernet_steps"] is None:
        decided = {"supernet_steps": _default_steps(weights, space, share, dense_score, len(images))}
    context.run.bind("weights", decided)
    if not decided["supernet_steps"]:
        return weights
    builder, steps = context.builder, int(decided["supernet_steps"])
    plans = (builder.kept(plan) for plan in plans_around(space, share, seed))
    with context.run.derived(context.run.supernet, safetensors.torch.load, context.callback.notice):
        supernet = train_supernet(
            builder.module, builder.space, Schedule(plans, steps), images, context.run.supernet, context.callback.progress
        )
    context.notices.add(
        f"plans were scored with the weights of a supernet, which was trained for {steps} steps, and fine-tuning starts from "
        "these weights"
    )
    return replace(weights, supernet=supernet)


def _default_steps(weights: InitialWeights, space: SearchSpace, share: float, dense_score: float, images: int) -> int:
    context = weights.context
    score, chance_level = context.task.score(weights.of(space.uniform(share))), context.task.chance_level
    enough = chance_level + ENOUGH * (dense_score - chance_level)
    context.callback.say(f"{100 * share:.0f} % of all channels kept: score {score:.2f}; {enough:.2f} is enough to rank plans")
    if score >= enough:
        return 0
    middle, dense = (context.builder.make(space.uniform(width)).macs for width in (middle_share(share), 1.0))
    steps = affordable_steps(middle, dense, images)
    if not steps:
        context.notices.add(
            f"the budget is so tight that a pruned network scores only {score:.2f}, so scores rank plans badly; a supernet "
            "would help, but takes long for a network of this size: --supernet 500 trains one anyway"
        )
    return steps
