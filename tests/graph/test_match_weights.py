"""Matching weights: which initializer of the graph is which tensor of the torch network."""

import numpy as np
import onnx
import torch
from helpers.onnx_text import graph
from onnx import numpy_helper
from torch import Tensor

from pipeline.graph.match_weights import match_weights
from pipeline.graph.metadata import constants_of, stamp
from pipeline.graph.to_torch import TorchTensor


def with_values(model: onnx.ModelProto, **values: Tensor) -> onnx.ModelProto:
    """`model` with these values in its initializers."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[tensor.name].numpy()), tensor.name))
    return model


def two_layers() -> onnx.ModelProto:
    """x -> matmul first -> matmul second"""
    return graph("(float[1,3] x) => (float[1,3] y) { a = MatMul(x, first)  y = MatMul(a, second) }", first=(3, 3), second=(3, 3))


def readers(model: onnx.ModelProto) -> list[str]:
    return [node.input[1] for node in model.graph.node]


def test_a_transposed_weight_is_found_under_another_name_and_renamed() -> None:
    weight = torch.randn(4, 3)
    model = with_values(graph("(float[1,3] x) => (float[1,4] y) { y = MatMul(x, val_0) }", val_0=(3, 4)), val_0=weight.T)
    found = match_weights(model, {"fc.weight": weight})

    assert found == {"fc.weight": TorchTensor("fc.weight", (1, 0))}
    assert readers(model) == ["fc.weight"]


def test_a_constant_that_gets_the_name_of_its_buffer_stays_a_constant() -> None:
    mean = torch.randn(3)
    model = graph("(float[1,3,2,2] x) => (float[1,3,2,2] y) { y = Sub(x, mean_folded) }", mean_folded=(1, 3, 1, 1))
    model = with_values(model, mean_folded=mean.reshape(1, 3, 1, 1))
    stamp(model, {"constants": '["mean_folded"]'})
    match_weights(model, {"mean": mean})

    assert readers(model) == ["mean"]
    assert constants_of(model) == {"mean"}


def test_a_weight_in_its_own_layout_keeps_the_order_of_its_axes() -> None:
    weight = torch.randn(4, 3, 1, 1)
    model = with_values(graph("(float[1,3,4,4] x) => (float[1,4,4,4] y) { y = Conv(x, w) }", w=(4, 3, 1, 1)), w=weight)

    assert match_weights(model, {"conv.weight": weight}) == {"conv.weight": TorchTensor("conv.weight", (0, 1, 2, 3))}


def test_a_square_weight_is_told_from_its_transpose() -> None:
    weight = torch.arange(9.0).reshape(3, 3)
    model = with_values(two_layers(), first=weight.T)

    assert match_weights(model, {"fc.weight": weight}) == {"fc.weight": TorchTensor("fc.weight", (1, 0))}


def test_axes_of_length_one_that_torch_has_not_are_marked() -> None:
    """a vector of 4 scales that the graph holds as (1, 4, 1, 1)"""
    scale = torch.randn(4)
    model = with_values(
        graph("(float[1,4,2,2] x) => (float[1,4,2,2] y) { y = Mul(x, s) }", s=(1, 4, 1, 1)), s=scale.reshape(1, 4, 1, 1)
    )

    assert match_weights(model, {"gamma": scale}) == {"gamma": TorchTensor("gamma", (-1, 0, -1, -1))}


def test_equal_tensors_are_told_apart_by_their_names() -> None:
    """both layers start with the same values"""
    weight = torch.randn(3, 3)
    model = with_values(two_layers(), first=weight, second=weight)
    found = match_weights(model, {"first": weight.clone(), "second": weight.clone()})

    assert {name: place.name for name, place in found.items()} == {"first": "first", "second": "second"}


def test_equal_tensors_without_their_names_get_no_match() -> None:
    weight = torch.randn(3, 3)
    model = with_values(two_layers(), first=weight)

    assert match_weights(model, {"a.weight": weight.clone(), "b.weight": weight.clone()}) == {}


def test_a_tensor_that_differs_in_one_of_many_values_is_no_match() -> None:
    weight = torch.zeros(100, 90)
    other = weight.clone()
    other[37, 41] = 1.0
    model = with_values(graph("(float[1,90] x) => (float[1,100] y) { y = MatMul(x, val_0) }", val_0=(90, 100)), val_0=other.T)

    assert match_weights(model, {"fc.weight": weight}) == {}


def test_one_tensor_under_two_names_is_matched_once() -> None:
    """a layer that the network holds under two names has one weight"""
    weight = torch.randn(3, 3)
    model = with_values(two_layers(), first=weight)

    assert match_weights(model, {"a.weight": weight, "b.weight": weight}) == {"a.weight": TorchTensor("a.weight", (0, 1))}


def test_a_name_alone_is_no_match() -> None:
    """weight norm: the graph holds the normalised weight, which is computed from the one of this name"""
    weight = torch.randn(3, 3)
    model = with_values(two_layers(), first=weight / weight.norm())

    assert match_weights(model, {"first": weight}) == {}


def test_a_constant_that_two_nodes_read_is_copied_for_each() -> None:
    """both products read one table; the channels of one say nothing about those of the other"""
    model = graph("(float[1,3] x) => (float[1,3] y) { a = Mul(x, table)  y = Mul(a, table) }", table=(3,))
    found = match_weights(model, {})
    values = {tensor.name: numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer}

    assert found == {}
    assert readers(model) == ["table", "table#2"]
    assert values["table"] == values["table#2"]


def test_a_weight_that_two_nodes_read_stays_shared() -> None:
    weight = torch.randn(3, 3)
    model = graph("(float[1,3] x) => (float[1,3] y) { a = MatMul(x, w)  y = MatMul(a, w) }", w=(3, 3))
    match_weights(with_values(model, w=weight), {"fc.weight": weight})

    assert readers(model) == ["fc.weight", "fc.weight"]


def test_a_name_that_is_taken_is_not_given_again() -> None:
    """a node's output already has the name of the weight"""
    weight = torch.randn(3, 3)
    model = graph("(float[1,3] x) => (float[1,3] y) { fc = MatMul(x, w)  y = Relu(fc) }", w=(3, 3))
    found = match_weights(with_values(model, w=weight), {"fc": weight})

    assert found == {"w": TorchTensor("fc", (0, 1))}
    onnx.checker.check_model(model)
