"""Prove: every group is tried before it enters the search space. The sliced graph must have the output of the silenced one.

The trial does not depend on how the groups were found. So a wrong rule leaves a layer unpruned, and never yields a wrong network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from pipeline.core.onnx_outputs import TOLERANCE
from pipeline.core.plan import Block, Group, Kept, NotPrunable
from pipeline.core.progress import Progress, no_progress
from pipeline.errors import one_line
from pipeline.graph.labels.space import GraphSpace
from pipeline.graph.module_names import places_of
from pipeline.graph.trial import SEED, Trial, start_trial

__all__ = ["Proven", "prove_blocks", "prove_groups"]

EXACT = 1e-9
"""Largest difference that counts as rounding in double precision, as a share of the largest output."""


@dataclass(frozen=True)
class Proven:
    """The groups that passed, the groups that failed with reasons, and the precision of the trial."""

    groups: tuple[Group, ...]
    refused: tuple[NotPrunable, ...]
    precision: str
    worst: float
    """The largest difference of the last trial that succeeded, as a share of the largest output."""


def prove_groups(model: onnx.ModelProto, labelled: GraphSpace, progress: Progress = no_progress) -> Proven:
    """Try all groups together, and halve the set where the trial fails, until the groups that fail are found.

    `model` is the trainable graph that `labelled` was found for. Every trial runs with random weights, once with about half
    of the channels of each group and once with one channel removed. The outputs are compared in double precision, or in single
    precision where the network does not run in double. If the network amplifies rounding, its activations lose their slopes; see
    `start_trial`.
    """
    total = len(labelled.space.groups)
    places = places_of(model)
    trial: Trial | None = None
    worst = 0.0
    good: list[Group] = []
    refused: list[NotPrunable] = []
    waiting = [list(labelled.space.groups)] if total else []
    while waiting:
        groups = waiting.pop()
        decided = len(good) + len(refused)
        text = f"testing the channel groups, {decided} of {total} decided"
        progress(2 * decided, 2 * total, text)
        trial = trial or start_trial(model, labelled, _plans(groups)[0])
        # the first of the two comparisons is half of the work for these groups
        half_done = partial(progress, 2 * decided + len(groups), 2 * total, text)
        reason, difference = _misfit(trial, [*good, *groups], places, half_done)
        if reason and trial.is_unsteady(_plans(groups)[0]):
            trial = start_trial(model, labelled, _plans(groups)[0], with_slopes=False)
            reason, difference = _misfit(trial, [*good, *groups], places, half_done)
        if reason is None:
            good += groups
            worst = difference
        elif len(groups) == 1:
            refused.append(NotPrunable(groups[0].name, reason))
        else:
            middle = len(groups) // 2
            waiting += [groups[middle:], groups[:middle]]
    order = {group.name: number for number, group in enumerate(labelled.space.groups)}
    progress(2 * total, 2 * total, "the channel groups are tested")
    precision = trial.precision if trial else "double"
    return Proven(tuple(sorted(good, key=lambda group: order[group.name])), tuple(refused), precision, worst)


def prove_blocks(model: onnx.ModelProto, labelled: GraphSpace) -> tuple[tuple[Block, ...], tuple[NotPrunable, ...]]:
    """Return the blocks of `labelled` that can be dropped, and those that cannot, with reasons.

    The graph without a block must have the output of the graph whose branch is zero. All blocks are tried together, with half of
    the channels of each group, and the set is halved where the trial fails.
    """
    places = places_of(model)
    half = _plans(labelled.space.groups)[0]
    good: list[Block] = []
    refused: list[NotPrunable] = []
    waiting = [list(labelled.space.blocks)] if labelled.space.blocks else []
    trial = start_trial(model, labelled, half) if waiting else None
    while waiting and trial:
        blocks = waiting.pop()
        reason = _unlike(trial, half, [*good, *blocks], places)
        if reason and trial.is_unsteady(half):
            trial = start_trial(model, labelled, half, with_slopes=False)
            reason = _unlike(trial, half, [*good, *blocks], places)
        if reason is None:
            good += blocks
        elif len(blocks) == 1:
            refused.append(NotPrunable(blocks[0].name, f"the block cannot be dropped: {reason}"))
        else:
            middle = len(blocks) // 2
            waiting += [blocks[middle:], blocks[:middle]]
    return tuple(good), tuple(refused)


def _unlike(trial: Trial, half: Kept, blocks: Sequence[Block], places: Mapping[str, str]) -> str | None:
    """The reason why `blocks` cannot be dropped, or None. All of them are dropped, and every second one, because a dropped block
    hides the blocks inside it.
    """
    reason: str | None = None
    for number in (1, 2):
        dropped = dict.fromkeys((block.name for block in blocks[::number]), ())
        reason = reason or _compared(trial, {**half, **dropped}, places)[0]
    return reason


def _misfit(
    trial: Trial, groups: Sequence[Group], places: Mapping[str, str], half_done: Callable[[], None]
) -> tuple[str | None, float]:
    """The reason why channels of `groups` cannot be removed, or None when they can, and the largest difference.

    `half_done` is called in the middle.
    """
    half, one = _plans(groups)
    reason, first = _compared(trial, half, places)
    if reason:
        return reason, first
    half_done()
    reason, second = _compared(trial, one, places)
    return reason, max(first, second)


def _plans(groups: Sequence[Group]) -> list[Kept]:
    """About half of the channels of each group, and all but one. Half may fit by chance, because equally many channels leave each
    part of a split; then one does not.
    """
    generator = np.random.default_rng(SEED)
    return [
        {
            group.name: tuple(sorted(generator.permutation(group.channels)[group.channels // 2 if half else 1 :].tolist()))
            for group in groups
        }
        for half in (True, False)
    ]


def _compared(trial: Trial, kept: Kept, places: Mapping[str, str]) -> tuple[str | None, float]:
    try:
        small = trial.sliced(kept)
    except Exception as problem:
        place = next((places[note] for note in getattr(problem, "__notes__", ()) if note in places), None)
        where = f"the sizes do not fit at {place}" if place else one_line(problem, 120)
        return f"the network does not run without it ({where})", 0.0
    worst = 0.0
    for one, other in zip(small, trial.silenced(kept), strict=True):
        if one.shape != other.shape:
            return "its channels are the network's output", worst
        difference = float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-6))
        if not difference <= (EXACT if trial.precision == "double" else TOLERANCE):
            return (
                f"removing its channels changes more than they carry (by {100 * difference:.2g} % of the largest output)",
                worst,
            )
        worst = max(worst, difference)
    return None, worst
