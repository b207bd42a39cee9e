"""A Slice that takes channels in steps becomes a Gather, with the same answer."""

import numpy as np
import pytest
from helpers.onnx_text import graph

from pipeline.core.onnx_outputs import run_onnx
from pipeline.graph.edit import copy_of
from pipeline.graph.gather_steps import gather_steps, label_with_steps
from pipeline.graph.labels.space import label_graph

PICTURE = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
LOWEST = -(2**63)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps", "left"),
    [
        ([0], [8], [1], [2], ["Gather"]),
        ([-1], [LOWEST], [1], [-3], ["Gather"]),
        ([6], [1], [-3], [-2], ["Gather"]),
        ([1, 2], [100, -1], [1, 3], [3, 1], ["Gather", "Slice"]),
        ([0, 1, 5], [8, 7, LOWEST], [2, 1, 3], [2, 2, -1], ["Gather", "Slice"]),
    ],
)
def test_the_gather_takes_what_the_slice_took(
    starts: list[int], ends: list[int], axes: list[int], steps: list[int], left: list[str]
) -> None:
    model = graph(
        "(float[1,3,6,6] x) => (float[] y) { c = Conv(x, w) y = Slice(c, starts, ends, axes, steps) }",
        w=(8, 3, 1, 1),
        starts=starts,
        ends=ends,
        axes=axes,
        steps=steps,
    )
    gathered = copy_of(model)
    gather_steps(gathered, frozenset({("Slice_1", 1)}))

    assert [node.op_type for node in gathered.graph.node if node.op_type in ("Slice", "Gather")] == left
    np.testing.assert_array_equal(run_onnx(gathered.SerializeToString(), PICTURE), run_onnx(model.SerializeToString(), PICTURE))


def test_a_slice_in_steps_behind_another_one_is_found_too() -> None:
    """every fourth of eight channels, in two steps; pixels are taken in steps too, and stay a Slice"""
    model = graph(
        """(float[1,3,6,6] x) => (float[1,2,3,6] y) {
            c = Conv(x, w) d = Slice(c, zero, end, channels, two) e = Slice(d, zero, end, channels, two)
            f = Slice(e, zero, end, rows, two) y = Conv(f, out)
        }""",
        w=(8, 3, 1, 1),
        out=(2, 2, 1, 1),
        zero=[0],
        end=[8],
        channels=[1],
        rows=[2],
        two=[2],
    )
    before = label_graph(model)
    after = label_with_steps(model)

    assert [layer.reason for layer in before.space.frozen if layer.name == "w"] == [
        "'Slice_1' (Slice) takes its channels in steps of 2"
    ]
    assert {group.name for group in after.space.groups} == {"w", "w#2"}
    assert [node.op_type for node in model.graph.node if node.op_type != "Constant"] == [
        "Conv",
        "Gather",
        "Gather",
        "Slice",
        "Conv",
    ]
