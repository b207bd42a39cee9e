"""Block losses: what dropping each block alone costs. It is found once before the search, and blocks are dropped in its order."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.search.problem import SearchSpace
from pipeline.stages.context import open_stage
from pipeline.stages.initial_weights import InitialWeights
from pipeline.system.files import write_atomically
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["losses_in", "with_block_losses"]

_LOSSES = TypeAdapter(dict[str, float])


def with_block_losses(weights: InitialWeights, space: SearchSpace) -> SearchSpace:
    """Return `space` with the loss of each block. Without blocks, it is returned unchanged.

    The loss is the difference of the outputs on a few hundred pictures, after the layers behind the block were adapted. It needs
    no labels. The losses are kept in the run directory, so that a resumed run asks for the same plans. Raises StorageError.
    """
    if not space.has_blocks:
        return space
    context = weights.context
    run, callback = context.run, context.callback
    blocks = {choice.name for choice in space.choices if choice.is_block}
    with (
        open_stage(run, callback, "blocks", "find out what dropping each block costs"),
        run.derived(run.block_losses, json.loads, callback.notice),
    ):
        found = _read(run.block_losses)
        if found is None or found.keys() != blocks:
            found = weights.reconstruction.block_errors(callback.progress)
            write_atomically(run.block_losses, _LOSSES.dump_json(found))
    return losses_in(space, found)


def losses_in(space: SearchSpace, losses: Mapping[str, float]) -> SearchSpace:
    """Return `space` with the `losses` of blocks, by name."""
    return SearchSpace(tuple(replace(choice, loss=losses.get(choice.name)) for choice in space.choices))


def _read(path: Path) -> dict[str, float] | None:
    try:
        return _LOSSES.validate_json(read_foreign(path, JSON_LIMIT_BYTES, own=True))
    except (OSError, ValidationError):
        return None
