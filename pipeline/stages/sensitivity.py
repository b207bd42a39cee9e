"""Sensitivity: with few pictures, measure how far the outputs move when one group alone loses channels. A search starts there."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.core.compute_device import placed
from pipeline.core.plan import ChannelPlan
from pipeline.core.run import Run
from pipeline.data.images import evaluation_size
from pipeline.search.problem import SearchSpace
from pipeline.search.sensitivity import path_of, probing_plans
from pipeline.stages.context import RunContext, open_stage
from pipeline.stages.initial_weights import InitialWeights
from pipeline.training.epochs import distillation_loss
from pipeline.training.scoring import recalibrate

__all__ = ["output_distance", "sensitivity_path"]

PICTURES = 64
"""Number of pictures from which statistics are estimated, and on which outputs are compared."""
TEMPERATURE = 4.0
DIGITS = 6


def sensitivity_path(context: RunContext, space: SearchSpace, weights: InitialWeights) -> Callable[[float], ChannelPlan] | None:
    """Return the plans from which a search starts, by share of the MACs.

    None with many pictures, where uniform plans suffice, and where blocks can be dropped, which have a start of their own. The
    journal keeps the distances for a resumed run. A run whose search an older version began has none.
    """
    run = context.run
    known = run.facts("sensitivity")
    if space.has_blocks or not context.task.few_pictures or (known is None and _has_searched(run)):
        return None
    plans = [plan for each in probing_plans(space).values() for plan in each]
    if known is None:
        with open_stage(run, context.callback, "sensitivity", "remove channels of one group at a time"):
            known = {"distances": _distances(context, weights, plans)}
        run.bind("sensitivity", known)
    return path_of(space, dict(zip(plans, known["distances"], strict=True)))


def output_distance(module: nn.Module, dense: Sequence[Tensor], batches: Sequence[Inputs]) -> float:
    """Return the mean distance of the outputs of `module` from those of the dense network, `dense`, on the same batches.

    BatchNorm statistics are estimated from the batches first.
    """
    recalibrate(module, batches)
    with placed(module) as device, torch.inference_mode():
        total = sum(
            float(distillation_loss(module(pixels.to(device)).cpu(), target, TEMPERATURE)) * len(pixels)
            for pixels, target in zip(batches, dense, strict=True)
        )
    return total / sum(map(len, batches))


def _distances(context: RunContext, weights: InitialWeights, plans: Sequence[ChannelPlan]) -> list[float]:
    pixels = context.task.inputs(PICTURES)
    batches = pixels.split(evaluation_size(pixels[:1].numel()))
    with placed(context.builder.module.eval()) as device, torch.inference_mode():
        dense = [context.builder.module(batch.to(device)).cpu() for batch in batches]
    found = []
    for number, plan in enumerate(plans):
        context.callback.progress(number, len(plans), "removing channels of one group at a time")
        found.append(round(output_distance(weights.of(plan), dense, batches), DIGITS))
    return found


def _has_searched(run: Run) -> bool:
    return any(trial.role == "search" for trial in run.trials)
