"""Products, attention and recurrent ops: each equals ONNX Runtime or the reference evaluator."""

from typing import Any

import numpy as np
import pytest
from helpers.rebuilt import by_reference, by_runtime, by_torch, difference, graph, network_of, op_difference, random


@pytest.mark.parametrize(("a", "b"), [((2, 3, 4), (2, 4, 5)), ((3, 4), (4, 5)), ((4,), (4, 5)), ((2, 1, 3, 4), (5, 4, 2))])
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    assert op_difference("MatMul", random(*a), random(*b, seed=1)) < 1e-5


@pytest.mark.parametrize("equation", ["bij, bjk -> bik", "bhwc,hkc->bhwk", "ii->i", "...i,ij->...j"])
def test_einsum(equation: str) -> None:
    shapes = {
        "bij, bjk -> bik": ((2, 3, 4), (2, 4, 5)),
        "bhwc,hkc->bhwk": ((2, 3, 4, 5), (3, 6, 5)),
        "ii->i": ((3, 3),),
        "...i,ij->...j": ((2, 3, 4), (4, 5)),
    }

    assert op_difference("Einsum", *[random(*shape) for shape in shapes[equation]], equation=equation) < 1e-5


def test_convolutions_whose_weight_is_computed() -> None:
    for op, attributes in (
        ("Conv", "<pads=[1,0,0,1]>"),
        ("ConvTranspose", "<strides=[2,2], pads=[1,0,0,1], output_padding=[1,0]>"),
    ):
        text = f"(float[2,4,5,5] x) => (float[2,4,A,B] y) {{ w = Mul (v, v)  y = {op} {attributes} (x, w, b) }}"
        model, x = graph(text, {"v": random(4, 4, 3, 3), "b": random(4)}), random(2, 4, 5, 5)

        assert difference(by_torch(network_of(model), x), by_reference(model, x)) < 1e-5


@pytest.mark.parametrize("options", [{}, {"is_causal": 1}, {"scale": 0.3}, {"softcap": 2.0}, {"softcap": 2.0, "is_causal": 1}])
@pytest.mark.parametrize("mask", [None, random(5, 5), random(5, 5) > -1])
@pytest.mark.parametrize("flat", [False, True])
def test_attention(options: dict[str, Any], mask: np.ndarray | None, flat: bool) -> None:
    q, k = ((2, 5, 4 * 6), (2, 5, 2 * 6)) if flat else ((2, 4, 5, 6), (2, 2, 5, 6))
    heads = {"q_num_heads": 4, "kv_num_heads": 2} if flat else {}
    if mask is not None and mask.dtype == bool:
        mask[:, 0] = True  # a row that sees nothing has no answer

    assert (
        op_difference("Attention", random(*q), random(*k, seed=1), random(*k, seed=2), mask, opset=23, **heads, **options) < 1e-5
    )


def test_rms_normalisation() -> None:
    assert op_difference("RMSNormalization", random(2, 3, 4), random(4, seed=1), opset=23, epsilon=1e-3) < 1e-6


@pytest.mark.parametrize("axes", [{}, {"axes": [1, 2]}])
def test_mean_variance_normalisation(axes: dict[str, list[int]]) -> None:
    assert op_difference("MeanVarianceNormalization", random(2, 3, 4, 5), **axes) < 1e-5


def recurrent(op: str, direction: str, inputs: str, options: str = "") -> float:
    """How far a recurrent layer of 5 steps, 3 sequences, 4 inputs and 6 hidden values is from ONNX Runtime"""
    gates, ways = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    shapes = {
        "w": (ways, gates * 6, 4),
        "r": (ways, gates * 6, 6),
        "b": (ways, 2 * gates * 6),
        "h": (ways, 3, 6),
        "c": (ways, 3, 6),
    }
    outputs = ["y", "last", "cell"][: 3 if op == "LSTM" else 2]
    wanted = ", ".join(f"float[A{name},B{name},C{name}{',D' if name == 'y' else ''}] {name}" for name in outputs)
    text = f'(float[5,3,4] x) => ({wanted}) {{ {", ".join(outputs)} = {op} <hidden_size=6, direction="{direction}"{options}> (x, {inputs}) }}'
    model = graph(
        text,
        {name: random(*shape, seed=place) for place, (name, shape) in enumerate(shapes.items()) if name in inputs.split(", ")},
    )
    x = random(5, 3, 4)
    return difference(by_torch(network_of(model), x), by_runtime(model, x))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layer(op: str, direction: str) -> None:
    assert recurrent(op, direction, "w, r, b", ", linear_before_reset=1" if op == "GRU" else "") < 1e-5


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gru_that_resets_before_the_product(direction: str) -> None:
    assert recurrent("GRU", direction, "w, r, b") < 1e-5


def test_recurrent_layer_without_biases_or_with_an_initial_state() -> None:
    assert recurrent("LSTM", "forward", "w, r") < 1e-5
    assert recurrent("LSTM", "bidirectional", "w, r, b, , h, c") < 1e-5
    assert recurrent("GRU", "forward", "w, r, b, , h") < 1e-5
