"""ONNX files of other programs: each becomes a trainable graph that answers like the file."""

import numpy as np
import onnx
import pytest
import torch
from helpers.graphs import TWO_INPUTS, conv_net, two_by_two
from helpers.nets import ZOO, build
from helpers.onnx_files import answers, as_keras, operators, traced
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.core.onnx_outputs import all_outputs
from pipeline.errors import TraceError
from pipeline.graph.analyse import analyse
from pipeline.graph.given.door import Refused
from pipeline.graph.given.names import layer_name_of
from pipeline.graph.given.prepare import Prepared, prepare
from pipeline.graph.metadata import opset_of, stripped
from pipeline.graph.prunable_network import random_kept
from pipeline.graph.shrink import shrink
from pipeline.graph.structure import structure
from pipeline.graph.to_torch import network_of

HIGHEST = 23


def prepared(data: bytes, shape: tuple[int, ...] = ()) -> Prepared:
    return prepare(data, {"": shape} if shape else {}, 18, HIGHEST)


def images(shape: tuple[int, ...], count: int = 3) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((count, *shape[1:])).astype(np.float32)


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("net", ["residual", "depthwise", "squeeze-excite", "concat"])
def test_a_file_of_torchs_older_exporter_answers_as_before(net: str, opset: int) -> None:
    data = traced(build(ZOO[net]), (1, 3, 8, 8), opset)
    made = prepared(data)
    pixels = images((1, 3, 8, 8))

    assert opset_of(made.model) == 18
    assert "BatchNormalization" not in operators(made.model)  # the exporter has folded it
    np.testing.assert_allclose(answers(made.model.SerializeToString(), pixels), answers(data, pixels), rtol=1e-3, atol=1e-4)


def test_layers_get_their_names_in_torch_back() -> None:
    data = traced(build(ZOO["residual"]), (1, 3, 8, 8), 13)
    names = {tensor.name for tensor in prepared(data).model.graph.initializer}

    assert {"stem.0.weight", "stem.0.bias", "inner.0.weight", "outer.0.weight", "head.weight"} <= names


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21, 23])
def test_keras_files_get_channels_first_and_lose_their_transposes(opset: int) -> None:
    data = as_keras(opset)
    made = prepared(data)
    pixels = images((1, 3, 12, 12))

    assert made.facts.doors[0].channels_last
    assert operators(made.model) == ["Conv", "Relu", "Conv", "Relu", "Transpose", "ReduceMean", "MatMul", "Add"]
    assert opset_of(made.model) == max(opset, 18)
    expected = answers(data, pixels.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(answers(made.model.SerializeToString(), pixels), expected, rtol=1e-4, atol=1e-5)


def test_names_of_keras_layers_input_and_output_are_kept() -> None:
    made = prepared(as_keras()).model
    weights = {node.input[1] for node in made.graph.node if node.op_type in ("Conv", "MatMul")}

    assert weights == {"model.a.weight", "model.b.weight", "model.head.weight"}
    assert (made.graph.input[0].name, made.graph.output[0].name) == ("images:0", "scores:0")


def test_free_sizes_are_fixed_by_a_shape_in_the_files_own_layout() -> None:
    made = prepared(as_keras(size="side"), (1, 20, 20, 3))

    assert made.facts.doors[0].shape == (1, 3, 20, 20)
    assert made.facts.doors[0].own_shape == (1, 20, 20, 3)


def test_an_input_of_bytes_becomes_floats_with_the_same_values() -> None:
    data = as_keras(kind=TensorProto.UINT8)
    made = prepared(data)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    found = answers(made.model.SerializeToString(), pixels.transpose(0, 3, 1, 2).astype(np.float32))

    np.testing.assert_allclose(found, answers(data, pixels), rtol=1e-4, atol=1e-3)


def test_a_file_with_several_inputs_and_outputs_keeps_their_names_and_the_type_of_what_is_no_image() -> None:
    """picture (float32, 1x3x16x16), count (int64, 1) -> map, scaled"""
    made = prepared(two_by_two())
    pictures, counts = np.concatenate([TWO_INPUTS[0], -TWO_INPUTS[0]]), np.array([2, 3])
    network = network_of(made.model).eval()
    with torch.no_grad():
        together = network(torch.from_numpy(pictures), count=torch.from_numpy(counts))

    assert [(door.name, door.type, door.shape) for door in made.facts.doors] == [
        ("picture", "float32", (1, 3, 16, 16)),
        ("count", "int64", (1,)),
    ]
    assert made.facts.outputs == ("map", "scaled")
    for number in range(2):
        expected = all_outputs(two_by_two(), (pictures[number : number + 1], counts[number : number + 1]))
        for ours, theirs in zip(together, expected, strict=True):
            np.testing.assert_allclose(ours[number : number + 1], theirs, rtol=1e-4, atol=1e-5)


def test_a_file_in_half_precision_becomes_one_in_single_precision() -> None:
    model = onnx.load_model_from_string(conv_net())
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    made = prepared(model.SerializeToString())
    pixels = images((1, 3, 16, 16))
    expected = answers(model.SerializeToString(), pixels.astype(np.float16))

    assert made.facts.single
    np.testing.assert_allclose(answers(made.model.SerializeToString(), pixels), expected, rtol=2e-2, atol=2e-2)


class HardSwish(nn.Module):
    """x * clip(x + 3, 0, 6) / 6, as Paddle writes it"""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x + 3).clamp(0, 6) / 6


@pytest.mark.parametrize(
    "data",
    [
        traced(build(ZOO["squeeze-excite"]), (1, 3, 8, 8), 13),
        traced(nn.Sequential(nn.Conv2d(3, 8, 3), HardSwish(), nn.Conv2d(8, 4, 3)), (1, 3, 8, 8), 11),
        as_keras(),
    ],
    ids=["torch", "hard swish", "keras"],
)
def test_the_network_that_is_rebuilt_is_pruned_like_its_graph(data: bytes) -> None:
    made = prepared(data)
    example = torch.from_numpy(images(made.facts.doors[0].shape, 1))
    network = analyse(network_of(made.model), example, stripped(made.model, 9))
    kept = random_kept(network.space, seed=1)
    small = shrink(network.module, network.space, kept)
    trained = network.trained(small, kept)

    assert network.origin == "rebuilt"
    assert len(network.space.groups) >= 1
    assert structure(trained) == structure(network.deployed.slice(kept))  # the file that ships is the one that was measured
    with torch.no_grad():
        np.testing.assert_allclose(
            answers(trained.SerializeToString(), example.numpy()), small(example).numpy(), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("node", "weight", "expected"),
    [
        ("/layer1/layer1.0/conv1/Conv", "onnx::Conv_193", "layer1.0.conv1"),
        ("/body/body.3/Conv", "onnx::Conv_5", "body.3"),
        ("Conv_0", "features.0.weight", "features.0"),
        ("StatefulPartitionedCall/model/block1/conv/Conv2D", "x", "model.block1.conv"),
        ("conv_stage0/BiasAdd", "w__1", "conv_stage0"),
        ("p2o.Conv.0", "conv2d_0.w_0", "p2o.Conv.0"),
        ("Conv@3", "", "Conv_3"),
        ("../../etc/passwd", "", "etc.passwd"),
        ("", "", ""),
    ],
)
def test_the_name_of_a_layer_comes_from_its_node_or_its_weight(node: str, weight: str, expected: str) -> None:
    assert layer_name_of(node, weight) == expected


def parsed(text: str, opset: int = 18) -> bytes:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> net {text}').SerializeToString()


@pytest.mark.parametrize(
    ("data", "shapes", "expected"),
    [
        (parsed("(float[1,3,8,8] x, float[1] t) => (float[1,3,8,8] y) { y = Mul (x, t) }"), {"": (1, 3, 8, 8)}, "has 2 inputs (x, t); name the one: --shape x=1x3x8x8"),
        (parsed("(float[1,3,8,8] x, float t) => (float[1,3,8,8] y) { y = Mul (x, t) }"), {}, "its input 't' is a single value; give it a first axis for the sample"),
        (parsed("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"), {}, "its input 'x' is ?x3x?x?; give its free sizes: --shape x=1x3x224x224"),
        (parsed("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"), {"x": (1, 4, 8, 8)}, "its input 'x' is ?x3x?x?, which --shape 1x4x8x8 does not fit"),
        (parsed("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"), {"x": (2, 3, 8, 8)}, "--shape x=2x3x8x8: the first size must be 1, because the first axis is the sample"),
        (parsed("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"), {"z": (1, 3, 8, 8)}, "has no input 'z' (--shape); its inputs are x"),
        (parsed("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"), {"x": (1, 3, 99999, 99999)}, "its input 'x' of 1x3x99999x99999 holds more than"),
        (parsed("(string[1,3,8,8] x) => (string[1,3,8,8] y) { y = Identity (x) }"), {}, "its input 'x' is STRING; only numbers"),
        (parsed("(float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Relu (x) }", 6), {}, "has opset 6; 7 to "),
        (parsed("(float[1,3,8,8] x) => (float[1,3,8,8] x) { y = Relu (x) }"), {}, "computes nothing: its output 'x' is an input"),
        (parsed("(float[1,3,8,8] x) => (uint8[1,3,8,8] y) { y, s, z = DynamicQuantizeLinear (x) }"), {}, "is quantised (node "),
        (b"<html>404 not found</html>", {}, "not an ONNX file that can be compressed ("),
    ],
    ids=["which input", "scalar", "free", "other shape", "batch", "other name", "huge", "text", "old", "nothing", "int8", "html"],
)  # fmt: skip
def test_a_file_that_cannot_be_compressed_is_refused_with_the_reason(
    data: bytes, shapes: dict[str, tuple[int, ...]], expected: str
) -> None:
    with pytest.raises(Refused) as caught:
        prepare(data, shapes, 18, HIGHEST)

    assert str(caught.value).startswith(expected)


def test_an_input_whose_first_axis_is_no_sample_is_named() -> None:
    """A state of two layers, as recurrent networks have it."""
    state = parsed(
        "(float[1,4] x, float[2,1,4] h) => (float[1,4] y) { one, two = Split <axis=0, num_outputs=2> (h) y = Add (x, two) }"
    )

    with pytest.raises(Refused, match=r"the first axis must be the sample, and that of 'h' may not be$"):
        prepare(state, {}, 18, HIGHEST)


def test_an_operator_of_a_runtime_is_refused_with_its_name() -> None:
    model = onnx.load_model_from_string(conv_net())
    model.graph.node[1].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    with pytest.raises(Refused, match=r"has the operator com\.microsoft\.Relu .*as it was before a runtime optimised it"):
        prepared(model.SerializeToString())


def test_control_flow_is_refused_when_the_network_is_rebuilt() -> None:
    data = parsed("""(float[1,3,8,8] x) => (float[1,3,8,8] y) {
        s = ReduceMax <keepdims = 0> (x)  zero = Constant <value_float = 0.0> ()  c = Greater (s, zero)
        y = If (c) <then_branch = a () => (float[1,3,8,8] p) { p = Relu (x) }, else_branch = b () => (float[1,3,8,8] q) { q = Neg (x) }>
    }""")

    with pytest.raises(TraceError, match="control flow in the graph cannot be rebuilt"):
        network_of(prepared(data).model)


def test_a_file_for_a_newer_runtime_is_converted_down() -> None:
    made = prepare(as_keras(21), {}, 13, 15)

    assert opset_of(made.model) == 15
