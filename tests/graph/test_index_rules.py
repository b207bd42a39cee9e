"""Index rules: a list as an index and an assignment to some positions become a Gather, with the same answer."""

import numpy as np
import onnx_ir
import pytest
from helpers.onnx_text import graph
from onnx import numpy_helper

from pipeline.core.onnx_outputs import run_onnx
from pipeline.graph.optimise import optimise_trainable

PICTURE = np.random.default_rng(0).standard_normal((1, 3, 6, 6)).astype(np.float32)
X, Y = "(float[1,3,6,6] x)", "(float[1,5,6,6] y)"
LIST_INDEX = """a = Conv(x, w) t = Transpose<perm = [1, 0, 2, 3]>(a) g = GatherND(t, rows)
    b = Transpose<perm = [1, 0, 2, 3]>(g) y = Conv(b, out)"""
ASSIGNMENT = """a = Conv(x, w) c = Conv(x, v) t = Transpose<perm = [1, 0, 2, 3]>(a) u = Transpose<perm = [1, 0, 2, 3]>(c)
    s = ScatterND(t, rows, u) b = Transpose<perm = [1, 0, 2, 3]>(s) y = Conv(b, out)"""
PLAIN = "a = Conv(x, w) c = Conv(x, v) b = {}(a, rows, c) y = Conv(b, out)"
GRID = np.stack(np.meshgrid([0], [5, 0], range(6), range(6), indexing="ij"), axis=-1)
"""The indices of x[:, [5, 0]] = y, as the older exporter writes them."""


PART = """a = Conv(x, w) c = Conv(x, v) zero = Constant<value_ints = [0]>() three = Constant<value_ints = [3]>()
    rows_of_pixels = Constant<value_ints = [2]>() p = Slice(c, zero, three, rows_of_pixels)
    b = ScatterND(a, rows, p) y = Conv(b, out)"""


def operators_after(text: str, rows: object) -> list[str]:
    """The operators of the optimised graph, whose answer must be that of the graph before."""
    channels = np.size(rows) if "GatherND" in text else 8
    model = graph(f"{X} => {Y} {{ {text} }}", w=(8, 3, 1, 1), v=(2, 3, 1, 1), out=(5, channels, 1, 1))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(rows, dtype=np.int64), "rows"))
    optimised = onnx_ir.from_proto(model)
    optimise_trainable(optimised, {"w", "v", "out"})
    after = onnx_ir.to_proto(optimised)
    np.testing.assert_array_equal(run_onnx(after.SerializeToString(), PICTURE), run_onnx(model.SerializeToString(), PICTURE))
    return [node.op_type for node in after.graph.node]


@pytest.mark.parametrize(
    ("text", "rows", "expected"),
    [
        (LIST_INDEX, [[0], [2], [1], [-1]], ["Gather"]),
        (ASSIGNMENT, [[0], [1]], ["Conv", "Concat", "Gather"]),
        (ASSIGNMENT, [[7], [-4]], ["Conv", "Concat", "Gather"]),
        (PLAIN.format("ScatterND"), GRID, ["Conv", "Concat", "Gather"]),
        (PLAIN.format("ScatterElements<axis = 1>"), GRID[..., 1], ["Conv", "Concat", "Gather"]),
    ],
)
def test_a_gather_along_the_channels_takes_its_place(text: str, rows: object, expected: list[str]) -> None:
    assert operators_after(text, rows) == ["Conv", *expected, "Conv"]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        pytest.param(ASSIGNMENT, [[3], [-5]], id="one position is assigned twice"),
        pytest.param(ASSIGNMENT.replace("ScatterND(", 'ScatterND<reduction = "add">('), [[0], [1]], id="the values are added"),
        pytest.param(PART, GRID[:, :, :3], id="half of the pixels of a channel"),
        pytest.param(
            PLAIN.format("ScatterElements<axis = 1>"),
            np.where(GRID[..., 2] > 2, GRID[..., 1], GRID[..., 1] + 1),
            id="the pixels go to different channels",
        ),
    ],
)
def test_what_is_no_assignment_to_whole_positions_of_one_axis_stays(text: str, rows: object) -> None:
    assert {"ScatterND", "ScatterElements"} & set(operators_after(text, rows))
