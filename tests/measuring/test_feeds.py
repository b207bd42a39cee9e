"""Values for the inputs of a file: random ones, and those of the user."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.core.network_input import NUMBERS, NetworkInput
from pipeline.errors import DataError
from pipeline.graph.fixed_inputs import fix_inputs
from pipeline.measuring.feeds import given_feeds, random_feeds

FILE = Path("inputs.npz")


@pytest.mark.parametrize("kind", NUMBERS)
def test_random_values_have_the_type_and_shape_and_suit_the_type(kind: str) -> None:
    """floats around 0; pixels of the whole range; other integers are 0 or 1, so that a table of two entries is enough"""
    (values,) = random_feeds([NetworkInput("x", kind, (40, 50))])

    assert (values.dtype.name, values.shape) == (kind, (40, 50))
    if kind.startswith("float"):
        assert abs(float(values.astype(np.float64).mean())) < 0.1
    elif kind in ("uint8", "int8"):
        assert (values.min(), values.max()) == (np.iinfo(kind).min, np.iinfo(kind).max)
    else:
        assert set(np.unique(values)) == {0, 1}


def test_a_single_integer_is_one_because_it_may_be_a_size() -> None:
    assert [each.tolist() for each in random_feeds([NetworkInput("n", "int64", ()), NetworkInput("m", "int32", (1,))])] == [
        1,
        [1],
    ]


def test_given_values_keep_the_order_of_the_inputs_and_get_their_types() -> None:
    inputs = [NetworkInput("half", "float16", (2,)), NetworkInput("ids", "int32", (1,))]
    half, ids = given_feeds(inputs, {"ids": np.array([7]), "half": np.array([0.5, 1.5])}, FILE)

    assert (half.dtype, half.tolist()) == (np.float16, [0.5, 1.5])
    assert (ids.dtype, ids.tolist()) == (np.int32, [7])


@pytest.mark.parametrize(
    ("wanted", "array", "reason"),
    [
        ("int32", np.array([2**40]), "array 'x' is int64, and the input takes int32; convert it: array.astype('int32')"),
        ("uint8", np.array([-1]), "array 'x' is int64, and the input takes uint8"),
        ("int64", np.array([0.5]), "array 'x' is float64, and the input takes int64"),
        ("float32", np.array([1]), "array 'x' is int64, and the input takes float32"),
        ("float32", np.array(["a"]), "array 'x' is str32, and the input takes float32"),
    ],
)
def test_values_that_would_change_are_refused(wanted: str, array: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError) as refused:
        given_feeds([NetworkInput("x", wanted, (1,))], {"x": array}, FILE)
    assert str(refused.value).startswith(f"inputs.npz: {reason}")


def test_a_single_array_without_a_name_belongs_to_the_only_input() -> None:
    array = np.array([[1.0, 2.0]], dtype=np.float32)
    net = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> net (float[n,2] x) => (float[n,2] y) { y = Relu (x) }'
    )

    assert fix_inputs(net.graph, {"arr_0": array.shape}) == (NetworkInput("x", "float32", (1, 2)),)
    assert given_feeds([NetworkInput("x", "float32", (1, 2))], {"arr_0": array}, FILE)[0] is array


def test_a_single_array_without_a_name_is_refused_for_several_inputs() -> None:
    with pytest.raises(DataError, match="has no array for input 'a'"):
        given_feeds([NetworkInput(name, "float32", (1,)) for name in ("a", "b")], {"arr_0": np.ones(1)}, FILE)


def test_an_array_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match=r"inputs.npz: has no array for input 'x' \(its arrays are y\)"):
        given_feeds([NetworkInput("x", "int64", (1,))], {"y": np.zeros(1)}, FILE)
