"""Elementwise ops: each equals ONNX's reference evaluator."""

import numpy as np
import pytest
import torch
from helpers.rebuilt import graph, network_of, op_difference, random

X, Y = random(2, 3, 4), random(2, 3, 4, seed=1)
POSITIVE, UNIT = np.abs(X) + 1.1, np.tanh(X)
INTS, MORE = np.array([[-7, 5, 3], [8, -2, 9]]), np.array([2, -3, 4])
BITS = np.array([[True, False, True]])

UNARY = {
    "Abs": X, "Acos": UNIT, "Acosh": POSITIVE, "Asin": UNIT, "Asinh": X, "Atan": X, "Atanh": UNIT, "Ceil": X, "Celu": X, "Cos": X, "Cosh": X,
    "Elu": X, "Erf": X, "Exp": X, "Floor": X, "HardSigmoid": X * 4, "HardSwish": X * 4, "Identity": X, "IsInf": np.array([1, np.inf, -np.inf], np.float32), "IsNaN": np.array([1, np.nan], np.float32),
    "LeakyRelu": X, "Log": POSITIVE, "Mish": X, "Neg": X, "Reciprocal": POSITIVE, "Relu": X, "Round": np.array([0.5, 1.5, -0.5, 2.4], np.float32), "Selu": X,
    "Shrink": X, "Sigmoid": X, "Sign": X, "Sin": X, "Sinh": X, "Softplus": X, "Softsign": X, "Sqrt": POSITIVE, "Tan": X, "Tanh": X, "ThresholdedRelu": X,
    "Not": BITS,
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary_op(op: str) -> None:
    assert op_difference(op, UNARY[op]) < 1e-6


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Celu", {"alpha": 2.0}),
        ("Elu", {"alpha": 0.5}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Selu", {"alpha": 1.2, "gamma": 2.0}),
        ("Shrink", {"bias": 0.3, "lambd": 0.4}),
        ("ThresholdedRelu", {"alpha": 0.2}),
        ("IsInf", {"detect_negative": 0}),
        ("Cast", {"to": 7}),
        ("Cast", {"to": 9}),
        ("Cast", {"to": 11}),
    ],
)
def test_unary_op_with_attributes(op: str, attributes: dict[str, float]) -> None:
    assert op_difference(op, X, **attributes) < 1e-6


@pytest.mark.parametrize(
    ("op", "opset", "attributes"), [("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}), ("Swish", 24, {"alpha": 1.5})]
)
def test_newer_activations(op: str, opset: int, attributes: dict[str, object]) -> None:
    assert op_difference(op, X, opset=opset, **attributes) < 1e-6


@pytest.mark.parametrize(
    "op",
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Min",
        "Max",
        "Sum",
        "Mean",
        "PRelu",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
    ],
)
@pytest.mark.parametrize("other", [Y, Y[0, 0], Y[:1, :, :1]], ids=["same", "row", "column"])
def test_binary_op_broadcasts(op: str, other: np.ndarray) -> None:
    assert op_difference(op, X, other) < 1e-6


@pytest.mark.parametrize("op", ["Min", "Max", "Sum", "Mean"])
@pytest.mark.parametrize("count", [1, 3])
def test_op_of_any_number_of_inputs(op: str, count: int) -> None:
    assert op_difference(op, *[X, Y, Y[0]][:count]) < 1e-6


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Div", {}),
        ("Mod", {}),
        ("Mod", {"fmod": 1}),
        ("Add", {}),
        ("BitwiseAnd", {}),
        ("BitwiseOr", {}),
        ("BitwiseXor", {}),
        ("Max", {}),
    ],
)
def test_binary_op_on_integers(op: str, attributes: dict[str, int]) -> None:
    assert op_difference(op, INTS, MORE, **attributes) == 0


def test_division_of_integers_rounds_towards_zero() -> None:
    network = network_of(graph("(int64[2] a, int64[2] b) => (int64[2] y) { y = Div (a, b) }"))

    assert network(torch.tensor([-7, 7]), torch.tensor([2, -2])).tolist() == [-3, -3]


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(direction: str) -> None:
    assert op_difference("BitShift", np.array([16, 4], np.uint8), np.array([1, 2], np.uint8), direction=direction) == 0


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logical_op(op: str) -> None:
    assert op_difference(op, BITS, ~BITS[:, :1]) == 0


@pytest.mark.parametrize(
    ("base", "power"),
    [(POSITIVE, Y), (X, np.float32(2)), (np.array([2, 3]), np.array([3, 2])), (np.array([2, 3]), np.float32(2.5))],
)
def test_power(base: np.ndarray, power: np.ndarray) -> None:
    assert op_difference("Pow", base, np.asarray(power)) < 1e-6


def test_where() -> None:
    assert op_difference("Where", X > 0, X, Y[0, 0]) == 0


@pytest.mark.parametrize("bounds", [(-0.5, 0.5), (None, 0.5), (-0.5, None), (None, None)])
def test_clip_with_bounds_as_inputs(bounds: tuple[float | None, float | None]) -> None:
    assert op_difference("Clip", X, *[None if bound is None else np.array(bound, np.float32) for bound in bounds]) == 0


@pytest.mark.parametrize("attributes", [{"min": -0.5, "max": 0.5}, {"max": 0.25}, {}])
def test_clip_with_bounds_as_attributes(attributes: dict[str, float]) -> None:
    assert op_difference("Clip", X, opset=7, **attributes) == 0


def test_cast_to_the_graphs_float_type_follows_the_networks_own() -> None:
    network = network_of(graph("(float[2] x) => (float[2] y) { a = Cast <to=7> (x)  y = Cast <to=1> (a) }"))

    assert network(torch.ones(2)).dtype == torch.float32
    assert network.double()(torch.ones(2).double()).dtype == torch.float64


def test_cast_like() -> None:
    assert op_difference("CastLike", X, np.array([1])) == 0
