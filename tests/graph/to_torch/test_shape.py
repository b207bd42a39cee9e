"""Shape ops: each equals ONNX's reference evaluator."""

import numpy as np
import pytest
import torch
from helpers.rebuilt import graph, network_of, op_difference, random, runtime_difference

X = random(2, 3, 4)
IMAGE = random(2, 8, 4, 6)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("target", [(6, 4), (0, -1), (2, -1, 2), (-1,), (1, 0, 2, 4)])
def test_reshape(target: tuple[int, ...]) -> None:
    assert op_difference("Reshape", X, ints(*target)) == 0


def test_reshape_with_allowzero_makes_an_empty_axis() -> None:
    network = network_of(
        graph("(float[0,3] x) => (float[3,0] y) { t = Constant <value_ints=[3, 0]> ()  y = Reshape <allowzero=1> (x, t) }")
    )

    assert tuple(network(torch.zeros(0, 3)).shape) == (3, 0)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    assert op_difference("Flatten", X, axis=axis) == 0


@pytest.mark.parametrize("axes", [(0,), (-1, 1), (0, 2)])
def test_unsqueeze_and_squeeze_in_both_forms(axes: tuple[int, ...]) -> None:
    wide = np.expand_dims(X, tuple(axes))

    assert op_difference("Unsqueeze", X, ints(*axes)) == 0
    assert op_difference("Unsqueeze", X, opset=11, axes=list(axes)) == 0
    assert op_difference("Squeeze", wide, ints(*axes)) == 0
    assert op_difference("Squeeze", wide, opset=11, axes=list(axes)) == 0
    assert op_difference("Squeeze", wide) == 0


@pytest.mark.parametrize("attributes", [{}, {"perm": [1, 2, 0]}])
def test_transpose(attributes: dict[str, list[int]]) -> None:
    assert op_difference("Transpose", X, **attributes) == 0


@pytest.mark.parametrize("axis", [0, -1])
def test_concat(axis: int) -> None:
    assert op_difference("Concat", X, X * 2, X + 1, axis=axis) == 0


def test_split_in_its_three_forms() -> None:
    assert op_difference("Split", X, ints(1, 3), outputs=2, axis=2) == 0
    assert op_difference("Split", X, outputs=2, axis=2, split=[1, 3], opset=11) == 0
    assert op_difference("Split", X, outputs=2, axis=1, num_outputs=2) == 0
    assert op_difference("Split", X, outputs=2, axis=2, opset=11) == 0


@pytest.mark.parametrize(
    "bounds",
    [
        ((1,), (3,), (2,), None),
        ((0, 1), (2, 2**62), (0, 2), (1, 2)),
        ((-3,), (-1,), (-1,), None),
        ((-1,), (-(2**62),), (2,), (-1,)),
        ((3,), (0,), (2,), (-2,)),
        ((2,), (1,), (2,), None),
        ((0, 1), (1, 3), None, None),
    ],
)
def test_slice(bounds: tuple[tuple[int, ...] | None, ...]) -> None:
    assert op_difference("Slice", X, *[None if bound is None else ints(*bound) for bound in bounds]) == 0


def test_slice_with_attributes() -> None:
    assert op_difference("Slice", X, opset=9, starts=[1, 0], ends=[2, -1], axes=[0, 2]) == 0


@pytest.mark.parametrize("indices", [np.array(1), np.array(-1), ints(0, -1, 1), np.array([[0, 2], [1, -1]])])
@pytest.mark.parametrize("axis", [1, -1])
def test_gather(indices: np.ndarray, axis: int) -> None:
    assert op_difference("Gather", X, indices, axis=axis) == 0


def test_gather_elements() -> None:
    assert op_difference("GatherElements", X, np.array([[[0, 1, 2, -1]], [[1, 1, 0, 0]]]), axis=1) == 0


@pytest.mark.parametrize(
    ("indices", "lead"), [(np.array([[0, 1], [1, -1]]), 0), (np.array([[[1], [0]], [[2], [2]]]), 1), (np.array([[[0, 1, 2]]]), 0)]
)
def test_gather_nd(indices: np.ndarray, lead: int) -> None:
    assert op_difference("GatherND", X, indices, batch_dims=lead) == 0


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd(reduction: str) -> None:
    assert op_difference("ScatterND", X, np.array([[0, 1], [1, -1]]), random(2, 4, seed=1), reduction=reduction) < 1e-6


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements(reduction: str) -> None:
    assert (
        op_difference(
            "ScatterElements",
            X,
            np.array([[[0, 1, 2, -1]], [[1, 1, 0, 0]]]),
            random(2, 1, 4, seed=1),
            axis=1,
            reduction=reduction,
        )
        < 1e-6
    )


@pytest.mark.parametrize("target", [(2, 3, 4), (5, 1, 3, 1), (1,)])
def test_expand(target: tuple[int, ...]) -> None:
    assert op_difference("Expand", X, ints(*target)) == 0


def test_tile() -> None:
    assert op_difference("Tile", X, ints(2, 1, 3)) == 0


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [(0, 1, 2, 0, 2, 1), (1, 0, 0, 1, 0, 0)])
def test_pad(mode: str, pads: tuple[int, ...]) -> None:
    assert op_difference("Pad", X, ints(*pads), opset=19, mode=mode) == 0


def test_pad_in_its_other_forms() -> None:
    assert op_difference("Pad", X, ints(1, 2), np.array(0.5, np.float32), ints(-1)) == 0
    assert runtime_difference("Pad", X, ints(0, -1, 0, 0, 0, -2)) == 0
    assert op_difference("Pad", X, opset=7, pads=[0, 1, 0, 0, 0, 2], value=1.5) == 0


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    assert op_difference("DepthToSpace", IMAGE, blocksize=2, mode=mode) == 0


def test_space_to_depth() -> None:
    assert op_difference("SpaceToDepth", IMAGE, blocksize=2) == 0


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, 1, -1])
def test_trilu(upper: int, k: int | None) -> None:
    assert op_difference("Trilu", X, None if k is None else np.array(k), upper=upper) == 0


@pytest.mark.parametrize("attributes", [{}, {"start": 1}, {"start": -2, "end": -1}, {"end": 5}])
def test_shape(attributes: dict[str, int]) -> None:
    assert op_difference("Shape", X, **attributes) == 0


def test_ops_that_make_tensors() -> None:
    assert op_difference("Size", X) == 0
    assert op_difference("Range", np.array(1), np.array(10), np.array(3)) == 0
    assert op_difference("Range", np.array(1.0, np.float32), np.array(2.0, np.float32), np.array(0.25, np.float32)) == 0
    assert op_difference("ConstantOfShape", ints(2, 3)) == 0
    assert op_difference("NonZero", np.round(X)) == 0
    assert op_difference("EyeLike", X[0], k=1) == 0
    assert op_difference("OneHot", np.array([[0, 2], [-1, 1]]), np.array(3), np.array([5, 7]), axis=1) == 0


def test_constants_are_read_in_all_numeric_forms() -> None:
    text = """(float[2] x) => (float[2] y) {
        a = Constant <value_floats=[1.0, 2.0]> ()
        b = Constant <value_float=3.0> ()
        c = Constant <value = float[2] {4, 5}> ()
        d = Add (x, a)
        e = Mul (d, b)
        y = Sub (e, c)
    }"""
    network = network_of(graph(text))

    assert network(torch.zeros(2)).tolist() == [-1.0, 1.0]
    assert network.double()(torch.zeros(2).double()).dtype == torch.float64
