"""Reductions and ops along one axis: each equals ONNX's reference evaluator."""

import numpy as np
import pytest
from helpers.rebuilt import by_runtime, by_torch, difference, graph, op_difference, random, runtime_difference

from pipeline.graph.to_torch import network_of

X = random(2, 3, 4)
REDUCTIONS = [
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
]  # fmt: skip


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("keep", [0, 1])
def test_reduction_with_axes_as_input(op: str, keep: int) -> None:
    assert op_difference(op, np.abs(X), np.array([-1, 0]), keepdims=keep) < 1e-6


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction_with_axes_as_attribute(op: str) -> None:
    assert op_difference(op, np.abs(X), opset=11, axes=[1], keepdims=0) < 1e-6


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction_of_all_axes(op: str) -> None:
    assert op_difference(op, np.abs(X), keepdims=0) < 1e-5


def test_reduction_of_no_axes_is_the_identity_where_the_node_says_so() -> None:
    assert op_difference("ReduceSum", X, noop_with_empty_axes=1) == 0


def test_mean_of_integers_is_rounded_towards_zero() -> None:
    model = graph("(int32[2,2] x) => (int32[2] y) { y = ReduceMean<keepdims = 0>(x, axes) }", {"axes": np.array([1])})
    numbers = np.array([[1, 4], [-7, 2]], dtype=np.int32)
    assert difference(by_torch(network_of(model), numbers), by_runtime(model, numbers)) == 0


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("options", [{"axis": 1}, {"axis": -1, "keepdims": 0}, {"axis": 0, "select_last_index": 1}])
def test_position(op: str, options: dict[str, int]) -> None:
    assert op_difference(op, np.round(X), **options) == 0


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_joins_axes_before_opset_13(op: str, opset: int, axis: int) -> None:
    assert runtime_difference(op, X, opset=opset, axis=axis) < 1e-6


@pytest.mark.parametrize("options", [{"largest": 1}, {"largest": 0}, {"axis": 1}])
def test_top_k(options: dict[str, int]) -> None:
    assert op_difference("TopK", X, np.array([2]), outputs=2, **options) == 0


@pytest.mark.parametrize("options", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_cumulative_sum(options: dict[str, int]) -> None:
    assert op_difference("CumSum", X, np.array(1), **options) < 1e-6


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalisation(p: int) -> None:
    assert runtime_difference("LpNormalization", X, axis=1, p=p, opset=18) < 1e-6
