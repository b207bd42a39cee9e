"""Blocks that the user keeps: --freeze, --only and --min-width reach whole blocks too, and --depth refuses what it does not fit."""

import pytest
from helpers.onnx_text import graph

from pipeline.core.restriction import Restriction
from pipeline.errors import ModelError
from pipeline.graph.blocks import find_blocks
from pipeline.graph.labels.space import GraphSpace, label_graph
from pipeline.graph.restrict import restrict_blocks
from pipeline.stages.job import Job


def two_blocks() -> GraphSpace:
    """x -> stem -> (+ one.conv) -> relu -> (+ two.conv) -> head"""
    model = graph(
        """(float[1,3,4,4] x) => (float[1,2,4,4] y) {
            e = Conv(x, stem)
            p = Conv(e, a) f = Add(e, p) r = Relu(f)
            q = Conv(r, b) z = Add(r, q)
            y = Conv(z, head)
        }""",
        stem=(4, 3, 1, 1),
        head=(2, 4, 1, 1),
        a=(4, 4, 1, 1),
        b=(4, 4, 1, 1),
    )
    names = {"a": "one.conv.weight", "b": "two.conv.weight"}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    labelled = label_graph(model)
    return labelled.with_blocks(*find_blocks(model, labelled.space.groups))


@pytest.mark.parametrize(
    ("restriction", "left"),
    [
        (Restriction(), ["one", "two"]),
        (Restriction(freeze=("one",)), ["two"]),
        (Restriction(freeze=("*.conv",)), []),
        (Restriction(only=("two.*",)), ["two"]),
        (Restriction(min_width=(("one.conv", 0.5),)), ["two"]),
    ],
)
def test_a_block_with_a_layer_that_the_user_keeps_is_not_dropped(restriction: Restriction, left: list[str]) -> None:
    space = restrict_blocks(two_blocks(), restriction).space

    assert [block.name for block in space.blocks] == left
    assert {layer.name for layer in space.frozen} >= {"one", "two"} - set(left)


def test_depth_is_part_of_the_job_only_where_it_is_asked_for() -> None:
    assert Job(target="raspberrypi").restriction.facts() == {}
    assert Job(target="raspberrypi", depth="auto").restriction.facts() == {"depth": "auto"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reward": "spatial-entropy"}, "entropy of a layer that was dropped"),
        ({"searcher": "ddpg-entropy"}, "entropy of a layer that was dropped"),
    ],
)
def test_depth_refuses_options_that_do_not_fit_it(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Job(target="raspberrypi", depth="auto", **options)  # type: ignore[arg-type]
