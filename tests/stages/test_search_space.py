"""The search space of a network with blocks: a block, then what is inside it."""

from pathlib import Path

import torch
from helpers.analysed import builder_with_blocks
from helpers.families import FAMILIES

from pipeline.core.opsets import FileFormat
from pipeline.graph.pruned_model import start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.stages.search_space import search_space


def test_a_block_comes_before_the_groups_inside_it_and_costs_what_they_cost() -> None:
    """stem -> block -> block with a projection shortcut -> block"""
    space = search_space(builder_with_blocks("resnet"), 1)
    names = [choice.name for choice in space.choices]
    block = space.choices[names.index("body.1")]

    assert names[names.index("body.1") + 1] == "body.1.first.0"
    assert (block.widths, block.is_block, block.contents) == ((0, 1), True, ("body.1.first.0",))
    assert block.macs_share > space.choices[names.index("body.1.first.0")].macs_share
    assert 0 < block.macs_share < 1


def test_without_depth_the_space_has_only_groups(tmp_path: Path) -> None:
    module, example = FAMILIES["resnet"]()
    builder = start_builder(module, example, FileFormat(18, 10), PruningSettings(), tmp_path / "dense.onnx")
    space = search_space(builder, 1)

    assert not space.has_blocks
    assert not any(choice.contents for choice in space.choices)


def test_the_network_of_a_plan_without_blocks_answers_like_its_file() -> None:
    builder = builder_with_blocks("resnet")
    thinnest = builder.make(search_space(builder, 1).thinnest())

    assert set(thinnest.plan.dropped) == {"body.1", "body.3"}
    assert thinnest.macs < builder.make(builder.space.plan(dict(builder.space.dense()), ["body.1"])).macs
    assert torch.isfinite(torch.from_numpy(thinnest.answers[0])).all()
