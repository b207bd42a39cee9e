"""Sensitivity: with few pictures, measure how far the outputs move when one group alone loses channels, or one block is dropped.
A search starts there.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.core.batch import Inputs, Outputs, on_processor, outputs_of
from pipeline.core.compute_device import placed
from pipeline.core.run import Run
from pipeline.data.images import evaluation_size
from pipeline.graph.reconstruct_in_turn import relative_difference
from pipeline.search.problem import Path, SearchSpace
from pipeline.search.sensitivity import path_of, probing_plans
from pipeline.stages.context import RunContext, open_stage
from pipeline.stages.initial_weights import InitialWeights
from pipeline.training.epochs import distillation_loss
from pipeline.training.scoring import recalibrate

__all__ = ["images_to_compare", "output_difference", "output_distance", "sensitivity_path"]

PICTURES = 64
"""Number of pictures from which statistics are estimated, and on which outputs are compared."""
TEMPERATURE = 4.0
DIGITS = 6


def sensitivity_path(context: RunContext, space: SearchSpace, weights: InitialWeights) -> Path | None:
    """Return the plans from which a search starts, by share of the MACs.

    None with many pictures, where uniform plans suffice. The journal keeps the distances for a resumed run. A run whose search an
    older version began has none.
    """
    run = context.run
    known = run.facts("sensitivity")
    if not context.task.few_pictures or (known is None and _has_searched(run)):
        return None
    plans = [plan for each in probing_plans(space).values() for plan in each]
    if known is None:
        with open_stage(run, context.callback, "sensitivity", "change one group or block at a time"):
            known = {"distances": _distances(context, space, weights)}
        run.bind("sensitivity", known)
    return path_of(space, dict(zip(plans, known["distances"], strict=True)))


def images_to_compare(context: RunContext, space: SearchSpace) -> int:
    """How many images `sensitivity_path` still has to run through networks, for their statistics and for their outputs."""
    if not context.task.few_pictures or context.run.facts("sensitivity") is not None or _has_searched(context.run):
        return 0
    plans = sum(map(len, probing_plans(space).values()))
    return 2 * plans * len(context.task.inputs(PICTURES))


def output_difference(module: nn.Module, dense: Sequence[Outputs], batches: Sequence[Inputs]) -> float:
    """Return the mean squared difference of the outputs of `module` from those of the dense network, `dense`.

    Both are for the same batches. It is a share of the variance of `dense`, and the mean over the outputs if there are several.
    `DenseInputs.fit` returns the same for blocks.

    BatchNorm statistics are estimated from the batches first.
    """
    recalibrate(module, batches)
    now = _answers(module, batches)
    pairs = zip(*(zip(*map(outputs_of, each), strict=True) for each in (dense, now)), strict=True)
    shares = [relative_difference(torch.cat(whole), torch.cat(found)) for whole, found in pairs]
    return sum(shares) / len(shares)


def output_distance(module: nn.Module, dense: Sequence[Outputs], batches: Sequence[Inputs]) -> float:
    """Return the mean distance of the outputs of `module` from those of the dense network, `dense`, on the same batches.

    BatchNorm statistics are estimated from the batches first.
    """
    recalibrate(module, batches)
    triples = zip(batches, _answers(module, batches), dense, strict=True)
    total = sum(float(distillation_loss(now, target, TEMPERATURE)) * len(pixels) for pixels, now, target in triples)
    return total / sum(map(len, batches))


def _distances(context: RunContext, space: SearchSpace, weights: InitialWeights) -> list[float]:
    """The distances of `probing_plans`, in order. If blocks can be dropped, all are in the unit of their losses."""
    pixels = context.task.inputs(PICTURES)
    batches = pixels.split(evaluation_size(pixels[:1].numel()))
    dense = _answers(context.builder.module.eval(), batches)
    distance = output_difference if space.has_blocks else output_distance
    probing = probing_plans(space)
    found = []
    for number, choice in enumerate(space.choices):
        context.callback.progress(number, len(space.choices), "changing one group or block at a time")
        for plan in probing[choice.name]:
            known = choice.loss if choice.is_block else None
            found.append(round(distance(weights.of(plan), dense, batches) if known is None else known, DIGITS))
    return found


def _answers(module: nn.Module, batches: Sequence[Inputs]) -> list[Outputs]:
    """The outputs of `module` for each batch, on the processor."""
    with placed(module) as device, torch.inference_mode():
        return [on_processor(module(batch.to(device))) for batch in batches]


def _has_searched(run: Run) -> bool:
    return any(trial.role == "search" for trial in run.trials)
