"""Fold: BatchNormalization goes into the layer before it, Dropout and Identity go, and nothing else changes."""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from helpers.analysed import exported, exported_trainable
from helpers.families import FAMILIES
from helpers.graphs import HEAD, with_weights
from helpers.nets import EXAMPLE, ZOO, build
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.core.onnx_outputs import TOLERANCE, all_outputs, largest_difference
from pipeline.graph.export import export, export_trainable
from pipeline.graph.fold import Folded, fold
from pipeline.graph.metadata import constants_of, stamp
from pipeline.graph.structure import load_graph, structure

CLOSE = 1e-5

NORM = "BatchNormalization(h, scale, shift, mean, variance)"
STATISTICS = {"scale": (8,), "shift": (8,), "mean": (8,), "variance": (8,)}
OTHER_STATISTICS = {f"{name}2": shape for name, shape in STATISTICS.items()}


def graph(body: str, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> onnx.ModelProto:
    """ONNX text with random weights; variances are positive."""
    model = load_graph(with_weights(f"{HEAD} net {body}", dict(shapes), seed))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("variance"):
            tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)) + np.float32(0.5), tensor.name))
    return model


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def difference(model: onnx.ModelProto, folded: Folded) -> float:
    """The largest one between the outputs of both graphs. The folded one is checked."""
    onnx.checker.check_model(folded.model, full_check=True)
    generator = np.random.default_rng(1)
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input]
    inputs = [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]
    both = (all_outputs(each.SerializeToString(), inputs) for each in (model, folded.model))
    return max(largest_difference(*pair) for pair in zip(*both, strict=True))


LAYERS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "convolution": ("2,3,9,9", "h = Conv(x, w)", {"w": (8, 3, 3, 3)}),
    "convolution with a bias": ("2,3,9,9", "h = Conv(x, w, b)", {"w": (8, 3, 3, 3), "b": (8,)}),
    "convolution in one dimension": ("2,3,9", "h = Conv(x, w)", {"w": (8, 3, 3)}),
    "depthwise convolution": ("2,8,9,9", "h = Conv <group = 8> (x, w)", {"w": (8, 1, 3, 3)}),
    "transposed convolution": ("2,3,9,9", "h = ConvTranspose <strides = [2,2]> (x, w)", {"w": (3, 8, 2, 2)}),
    "transposed in two groups": ("2,6,9,9", "h = ConvTranspose <group = 2> (x, w, b)", {"w": (6, 4, 2, 2), "b": (8,)}),
    "linear": ("2,3", "h = Gemm <transB = 1> (x, w, b)", {"w": (8, 3), "b": (8,)}),
    "linear without a bias": ("2,3", "h = Gemm (x, w)", {"w": (3, 8)}),
    "linear with factors": ("3,2", "h = Gemm <transA = 1, alpha = 0.3, beta = 0.7> (x, w, b)", {"w": (3, 8), "b": (8,)}),
    "product and sum": ("2,3", "p = MatMul(x, w)  h = Add(b, p)", {"w": (3, 8), "b": (8,)}),
    "product": ("2,3", "h = MatMul(x, w)", {"w": (3, 8)}),
    "product and sum of many rows": ("2,9,3", "p = MatMul(x, w)  q = Add(p, b)  h = Reshape(q, rows)", {"w": (3, 8), "b": (8,)}),
    "product of many rows": ("2,9,3", "p = MatMul(x, w)  h = Reshape(p, rows)", {"w": (3, 8)}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_batchnorm_is_folded_into_the_layer_before_it(name: str) -> None:
    shape, layer, shapes = LAYERS[name]
    axes = ",".join("NCHW"[: len(shape.split(","))] if "Conv" in layer else "NC")
    rows = "<int64[2] rows = {-1, 8}>"
    model = graph(f"(float[{shape}] x) => (float[{axes}] y) {rows} {{ {layer}  n = {NORM}  y = Relu(n) }}", shapes | STATISTICS)
    folded = fold(model)

    assert "BatchNormalization" not in kinds(folded.model)
    assert len(folded.model.graph.node) <= len(model.graph.node)
    assert set(arrays(folded.model)) - {"rows"} == ({"w", "b"} if "b" in shapes else {"w", "w_bias"})
    assert folded.follows == ({} if "b" in shapes else {"w_bias": "w"})
    assert difference(model, folded) < CLOSE


KEPT = {
    "an activation between": "h = Relu(k)  y = NORM",
    "a second use": "h = Identity(k)  n = NORM  y = Add(n, h)",
    "the layer's output is an output": "h = Identity(k)  other = Identity(k)  y = NORM",
    "statistics of the batch": "h = Identity(k)  y, m, v = BatchNormalization <training_mode = 1> (h, scale, shift, mean, variance)",
}


@pytest.mark.parametrize("name", KEPT)
def test_a_batchnorm_without_a_layer_of_its_own_stays(name: str) -> None:
    outputs = "float[2,8,7,7] y, float[2,8,7,7] other" if "other" in KEPT[name] else "float[2,8,7,7] y"
    body = KEPT[name].replace("NORM", NORM)
    model = graph(f"(float[2,3,9,9] x) => ({outputs}) {{ k = Conv(x, w)  {body} }}", {"w": (8, 3, 3, 3)} | STATISTICS)
    folded = fold(model)

    assert kinds(folded.model).count("BatchNormalization") == 1
    np.testing.assert_array_equal(arrays(folded.model)["w"], arrays(model)["w"])
    assert difference(model, folded) < CLOSE


def test_a_norm_over_the_rows_of_a_product_stays() -> None:
    """(2, 8, 3) @ (3, 8) -> (2, 8, 8): the BatchNorm scales axis 1, and the weight's outputs are on axis 2"""
    body = f"(float[2,8,3] x) => (float[2,8,8] y) {{ h = MatMul(x, w)  y = {NORM} }}"
    model = graph(body, {"w": (3, 8)} | STATISTICS)
    folded = fold(model)

    assert kinds(folded.model) == ["MatMul", "BatchNormalization"]
    assert difference(model, folded) < CLOSE


def test_two_batchnorms_in_a_row_are_both_folded() -> None:
    second = "BatchNormalization <epsilon = 0.1> (n, scale2, shift2, mean2, variance2)"
    body = f"(float[2,3,9,9] x) => (float[2,8,7,7] y) {{ h = Conv(x, w)  n = {NORM}  y = {second} }}"
    model = graph(body, {"w": (8, 3, 3, 3)} | STATISTICS | OTHER_STATISTICS)
    folded = fold(model)

    assert kinds(folded.model) == ["Conv"]
    assert (folded.follows, folded.copies) == ({"w_bias": "w"}, {})
    assert difference(model, folded) < CLOSE


SHARED = """(float[2,8,9,9] x) => (float[2,8,5,5] y) {
    h = Conv(x, block_weight, block_bias)  m = BatchNormalization(h, scale, shift, mean, variance)
    k = Conv(m, block_weight, block_bias)  y = SECOND
}"""


def test_a_weight_that_layers_with_different_norms_share_is_copied() -> None:
    body = SHARED.replace("SECOND", "BatchNormalization(k, scale2, shift2, mean2, variance2)")
    weights = {"block_weight": (8, 8, 3, 3), "block_bias": (8,)}
    model = graph(body, weights | STATISTICS | OTHER_STATISTICS)
    folded = fold(model)

    assert folded.copies == {
        "block_weight_2": "block_weight",
        "block_weight_3": "block_weight",
        "block_bias_2": "block_bias",
        "block_bias_3": "block_bias",
    }
    assert set(arrays(folded.model)) == set(folded.copies)
    assert difference(model, folded) < CLOSE


def test_a_weight_that_is_also_used_without_a_norm_keeps_its_values_there() -> None:
    model = graph(SHARED.replace("SECOND", "Relu(k)"), {"block_weight": (8, 8, 3, 3), "block_bias": (8,)} | STATISTICS)
    folded = fold(model)

    assert folded.copies == {"block_weight_2": "block_weight", "block_bias_2": "block_bias"}
    np.testing.assert_array_equal(arrays(folded.model)["block_weight"], arrays(model)["block_weight"])
    assert difference(model, folded) < CLOSE


def test_layers_that_share_a_weight_and_its_norm_go_on_sharing_it() -> None:
    body = SHARED.replace("SECOND", "BatchNormalization(k, scale, shift, mean, variance)")
    model = graph(body, {"block_weight": (8, 8, 3, 3), "block_bias": (8,)} | STATISTICS)
    folded = fold(model)

    assert folded.copies == {}
    assert set(arrays(folded.model)) == {"block_weight", "block_bias"}
    assert difference(model, folded) < CLOSE


def test_a_new_bias_is_named_after_its_weight_and_takes_no_name_from_others() -> None:
    """a_bias is the shift of another layer here"""
    body = f"(float[2,3,9,9] x) => (float[2,8,7,7] y) {{ h = Conv(x, a_weight)  n = {NORM}  y = Add(n, a_bias) }}"
    model = graph(body, {"a_weight": (8, 3, 3, 3), "a_bias": (8, 1, 1)} | STATISTICS)
    folded = fold(model)

    assert folded.follows == {"a_bias_2": "a_weight"}
    assert difference(model, folded) < CLOSE


PASSED = {
    "between": ("y = Relu(z)", "h = Identity(x)  k = Dropout(h, ratio)  z = Identity(k)", ["Relu"]),
    "before the output": ("y = Dropout(z, ratio)", "h = Relu(x)  z = Identity(h)", ["Relu"]),
    "from input to output": ("y = Dropout(x, ratio)", "", ["Identity"]),
    "twice an output": ("y = Identity(z)", "z = Relu(x)  other = Identity(z)", ["Relu", "Identity"]),
    "with a switch that is off": ("y = Relu(z)", "z = Dropout(x, ratio, off)", ["Relu"]),
}


@pytest.mark.parametrize("name", PASSED)
def test_what_passes_its_input_on_is_removed(name: str) -> None:
    last, first, expected = PASSED[name]
    outputs = "float[2,3] y, float[2,3] other" if "other" in first else "float[2,3] y"
    constants = "<float ratio = {0.5}, bool off = {0}>"
    model = graph(f"(float[2,3] x) => ({outputs}) {constants} {{ {first}  {last} }}", {})
    folded = fold(model)

    assert kinds(folded.model) == expected
    assert [value.name for value in folded.model.graph.output] == [value.name for value in model.graph.output]
    assert difference(model, folded) == 0
    assert arrays(folded.model) == {}


def test_a_dropout_that_is_on_or_whose_mask_is_used_stays() -> None:
    constants = "<float ratio = {0.0}, bool on = {1}>"
    body = "h, mask = Dropout(x, ratio)  k = Dropout(h, ratio, on)  y = Where(mask, k, h)"
    folded = fold(graph(f"(float[2,3] x) => (float[2,3] y) {constants} {{ {body} }}", {}))

    assert kinds(folded.model) == ["Dropout", "Dropout", "Where"]


def test_names_inside_a_branch_follow() -> None:
    """the branches of an If read the output of the Identity before it"""
    branch = "{name} = b () => (float[2,3] {out}) {{ {out} = {op}(h) }}"
    branches = ", ".join(
        branch.format(name=name, out=out, op=op) for name, out, op in (("then_branch", "t", "Relu"), ("else_branch", "e", "Neg"))
    )
    model = graph(
        f"(float[2,3] x) => (float[2,3] y) <bool c = {{1}}> {{ k = Abs(x)  h = Identity(k)  y = If (c) <{branches}> }}", {}
    )
    folded = fold(model)

    assert kinds(folded.model) == ["Abs", "If"]
    assert difference(model, folded) == 0


def test_folding_leaves_its_input_as_it_was() -> None:
    model = graph(f"(float[2,3,9,9] x) => (float[2,8,7,7] y) {{ h = Conv(x, w)  y = {NORM} }}", {"w": (8, 3, 3, 3)} | STATISTICS)
    before = model.SerializeToString()
    fold(model)

    assert model.SerializeToString() == before


BLOCK = """(float[1,6,5,5] x) => (float[1,8,7,7] y) {
    h = Conv(x, first_weight)  n = BatchNormalization(h, scale, shift, mean, variance)  r = Relu(n)
    k = ConvTranspose <group = 2, strides = [2,2]> (r, second_weight)
    y = BatchNormalization(k, scale2, shift2, mean2, variance2)
}"""


def narrowed(model: onnx.ModelProto, kept: NDArray[np.int64], follows: Mapping[str, str]) -> onnx.ModelProto:
    """BLOCK without some of the 8 channels of the first convolution, and, by `follows`, of what is derived from its weight."""
    axes = dict.fromkeys(("first_weight", "second_weight", *STATISTICS), 0)
    axes |= {bias: 0 for bias, weight in follows.items() if weight == "first_weight"}
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    for tensor in smaller.graph.initializer:
        if tensor.name in axes:
            tensor.CopyFrom(
                numpy_helper.from_array(np.take(numpy_helper.to_array(tensor), kept, axis=axes[tensor.name]), tensor.name)
            )
    return smaller


@pytest.mark.parametrize("kept", [(0, 1, 2, 3, 4, 5, 6, 7), (1, 2, 4, 7), (3, 6)])
def test_folding_a_slice_and_slicing_the_folded_graph_give_the_same_file(kept: tuple[int, ...]) -> None:
    weights = {"first_weight": (8, 6, 3, 3), "second_weight": (8, 4, 3, 3)}
    model = graph(BLOCK, weights | STATISTICS | OTHER_STATISTICS)
    folded = fold(model)
    one = fold(narrowed(model, np.array(kept), {})).model
    other = narrowed(folded.model, np.array(kept), folded.follows)

    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def test_the_values_of_a_graph_do_not_change_its_structure() -> None:
    """norms that do nothing: scale 1, shift 0, mean 0, variance 1"""
    weights = {"first_weight": (8, 6, 3, 3), "second_weight": (8, 4, 3, 3)} | STATISTICS | OTHER_STATISTICS
    model = graph(BLOCK, weights)
    trained = structure(fold(model).model)
    for tensor in model.graph.initializer:
        value = float(tensor.name.startswith(("scale", "variance")))
        tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, value, dtype=np.float32), tensor.name))

    assert structure(fold(model).model) == trained


def test_constants_that_are_folded_away_are_no_longer_listed() -> None:
    model = graph(
        f"(float[2,3,9,9] x) => (float[2,8,7,7] y) {{ h = Conv(x, w)  n = {NORM}  y = Mul(n, c) }}",
        {"w": (8, 3, 3, 3), "c": (8, 1, 1)} | STATISTICS,
    )
    stamp(model, {"constants": '["c", "mean", "variance"]'})

    assert constants_of(fold(model).model) == {"c"}


def in_three_forms(name: str) -> tuple[onnx.ModelProto, onnx.ModelProto, NDArray[np.float32], NDArray[np.float32]]:
    """The folded trainable graph, the graph that the exporter folded, an input, and what the network answers."""
    module, example = (build(ZOO[name]), EXAMPLE) if name in ZOO else FAMILIES[name]()
    with torch.no_grad():
        answer = module(example).numpy()
    if name in ZOO:
        return fold(exported_trainable(ZOO[name])).model, exported(ZOO[name]), example.numpy(), answer
    return fold(export_trainable(module, example, 18, 9)).model, export(module, example, 18, 9), example.numpy(), answer


@pytest.mark.parametrize("name", ["residual", "grouped", "transposed", "shared", "unfolded"])
def test_the_folded_graph_answers_like_the_network_and_has_the_nodes_that_the_exporter_s_own_folding_leaves(name: str) -> None:
    found, expected, inputs, answer = in_three_forms(name)

    assert Counter(kinds(found)) == Counter(kinds(expected))
    assert largest_difference(answer, all_outputs(found.SerializeToString(), [inputs])[0]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_has_more_nodes_than_after_the_exporter_s_own_folding(name: str) -> None:
    found, expected, inputs, answer = in_three_forms(name)

    assert Counter(kinds(found)) <= Counter(kinds(expected))
    assert largest_difference(answer, all_outputs(found.SerializeToString(), [inputs])[0]) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"])
def test_torchvision_s_networks_fold_as_well_as_by_the_exporter(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    module, example = build(getattr(torchvision.models, name)), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        answer = module(example).numpy()
    found, expected = fold(export_trainable(module, example, 18, 9)).model, export(module, example, 18, 9)

    assert Counter(kinds(found)) == Counter(kinds(expected))
    assert largest_difference(answer, all_outputs(found.SerializeToString(), [example.numpy()])[0]) < TOLERANCE
