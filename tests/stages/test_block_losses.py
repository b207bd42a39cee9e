"""What dropping each block costs is found once in a run, and a resumed run reads it."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers.analysed import builder_with_blocks

from pipeline.core.progress import Notices, NullCallback
from pipeline.core.run import open_run
from pipeline.graph.reconstruct import start_reconstruction
from pipeline.search.problem import SearchSpace
from pipeline.stages.block_losses import with_block_losses
from pipeline.stages.context import Provenance, RunContext
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.search_space import search_space


def losses(space: SearchSpace) -> dict[str, float | None]:
    return {choice.name: choice.loss for choice in space.choices if choice.is_block}


def test_a_resumed_run_has_the_losses_that_were_found_before(tmp_path: Path) -> None:
    """The pictures of the second process are others, so it would find other losses."""
    builder = builder_with_blocks("resnet")
    space, found = search_space(builder, 1), []
    for number in range(2):
        pictures = torch.randn(16, *builder.example.shape[1:], generator=torch.Generator().manual_seed(number))
        reconstruction = start_reconstruction(builder.module, builder.space, [pictures])
        with open_run(tmp_path / "run", {"seed": 0}) as run:
            context = RunContext(run, builder, None, None, (), NullCallback(), Notices(NullCallback()), Provenance((), {}, ""))  # type: ignore[arg-type]
            found.append(losses(with_block_losses(InitialWeights(context, reconstruction), space)))
            others = reconstruction.block_errors()

    assert found[0].keys() == {"body.1", "body.3"}
    assert found[0] == found[1] != others
    assert all(loss is not None and loss > 0 for loss in found[0].values())


def test_without_blocks_nothing_is_measured(tmp_path: Path) -> None:
    builder = builder_with_blocks("resnet")
    space = search_space(builder, 1)
    channels = replace(space, choices=tuple(choice for choice in space.choices if not choice.is_block))
    reconstruction = start_reconstruction(builder.module, builder.space, [])
    with open_run(tmp_path / "run", {"seed": 0}) as run:
        context = RunContext(run, builder, None, None, (), NullCallback(), Notices(NullCallback()), Provenance((), {}, ""))  # type: ignore[arg-type]

        assert with_block_losses(InitialWeights(context, reconstruction), channels) is channels
        assert not run.block_losses.exists()
