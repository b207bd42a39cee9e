"""Inputs of an ONNX file: names, types, and a size for every free dimension."""

from typing import Any

import numpy as np
import onnx
import pytest
from helpers.graphs import HEAD
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pipeline.core.network_input import NUMBERS, NetworkInput
from pipeline.graph.intake import look

TWO = "float[batch,3,h,w] image, int64[batch,n] ids"


def taking(inputs: str, body: str = "y = Constant <value_ints=[1]> ()") -> bytes:
    """a network that need not use its inputs"""
    text = f"{HEAD} net ({inputs}) => (int64[N] y) {{ {body} }}"
    return onnx.parser.parse_model(text).SerializeToString()


def found(inputs: str | bytes, given: dict[str, tuple[int, ...]] | None = None) -> list[tuple[str, str, list[int]]] | str:
    """The inputs, or why they are refused."""
    looked: dict[str, Any] = look(inputs if isinstance(inputs, bytes) else taking(inputs), given or {})
    return (
        str(looked["refused"])
        if "refused" in looked
        else [(each["name"], each["type"], list(each["shape"])) for each in looked["inputs"]]
    )


@pytest.mark.parametrize("kind", NUMBERS)
def test_an_input_of_any_type_of_number_is_taken(kind: str) -> None:
    value = helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), [2])
    graph = helper.make_graph(
        [helper.make_node("Shape", ["x"], ["y"])], "net", [value], [helper.make_empty_tensor_value_info("y")]
    )

    assert found(helper.make_model(graph).SerializeToString()) == [("x", kind, [2])]


def test_a_network_may_have_no_inputs_and_scalars() -> None:
    assert found("") == []
    assert found("int64 rate, bool[3] mask") == [("rate", "int64", []), ("mask", "bool", [3])]


def test_a_name_of_a_free_size_means_the_same_size_everywhere_and_a_batch_is_one() -> None:
    assert found(TWO, {"image": (2, 3, 8, 9), "ids": (2, 5)}) == [("image", "float32", [2, 3, 8, 9]), ("ids", "int64", [2, 5])]
    assert found("float[b,n] x, float[n,b] z", {"z": (7, 2)}) == [("x", "float32", [2, 7]), ("z", "float32", [7, 2])]
    assert found("float[b,3] x, float[b,4] z") == [("x", "float32", [1, 3]), ("z", "float32", [1, 4])]


def test_the_only_input_needs_no_name() -> None:
    assert found("float[n,c,h,w] x", {"": (1, 3, 4, 4)}) == [("x", "float32", [1, 3, 4, 4])]


REFUSED = {
    "unknown name": (
        TWO,
        {"imgae": (1, 3, 8, 8)},
        "has no input 'imgae' (--shape); did you mean 'image'? its inputs are image, ids",
    ),
    "which of them": (TWO, {"": (1, 3, 8, 8)}, "has 2 inputs (image, ids); name one of them: --shape NAME=SIZES"),
    "another rank": (TWO, {"image": (3, 8, 8)}, "its input 'image' is ?x3x?x?, which --shape 3x8x8 does not fit"),
    "a fixed size": (TWO, {"image": (1, 4, 8, 8)}, "its input 'image' is ?x3x?x?, which --shape 1x4x8x8 does not fit"),
    "two sizes of one name": (
        TWO,
        {"image": (2, 3, 8, 8), "ids": (3, 5)},
        "its dimension 'batch' is 2 in one input and 3 in 'ids' (--shape)",
    ),
    "a size is missing": (TWO, {"ids": (1, 5)}, "its input 'image' is ?x3x?x?; give its free sizes: --shape image=1x3x224x224"),
    "too large": (
        "float[n,m] x",
        {"x": (2**20, 2**20)},
        "its inputs have more than 134217728 values together; the largest is 'x' with 1048576x1048576",
    ),
    "text": ("string[1] x", {}, "its input 'x' is STRING; only float16, float32,"),
    "bfloat16": ("bfloat16[1] x", {}, "its input 'x' is BFLOAT16; only float16, float32,"),
    "a sequence": ("seq(float[1]) x", {}, "its input 'x' is a sequence, not a tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_cannot_be_fed_are_refused_with_the_reason(case: str) -> None:
    inputs, sizes, reason = REFUSED[case]

    assert str(found(inputs, sizes)).startswith(reason)


def test_other_sizes_are_another_structure() -> None:
    """because they have other latencies"""
    small, large = (
        look(taking(TWO, "y = Shape (image)"), {"image": (1, 3, size, size), "ids": (1, 5)})["structure"] for size in (8, 16)
    )

    assert small != large


@given(st.lists(st.sampled_from([0, 1, 2, 5]), max_size=4), st.data())
def test_given_sizes_are_kept_and_free_ones_are_filled(declared: list[int], data: st.DataObject) -> None:
    """0 stands for a free size"""
    sizes = tuple(size or data.draw(st.integers(1, 9)) for size in declared)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [size or None for size in declared])
    graph = helper.make_graph(
        [helper.make_node("Shape", ["x"], ["y"])], "net", [value], [helper.make_empty_tensor_value_info("y")]
    )

    assert found(helper.make_model(graph).SerializeToString(), {"x": sizes}) == [("x", "float32", list(sizes))]


def test_an_input_is_shown_with_its_type_and_sizes() -> None:
    assert str(NetworkInput("rate", "int64", ())) == "rate: int64 scalar"
