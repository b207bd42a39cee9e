"""Each rule on the smallest graph that shows it. The narrowed graph must answer like the silenced one."""

import numpy as np
import onnx
import pytest
from helpers.onnx_text import graph

from pipeline.core.onnx_outputs import largest_difference, open_session
from pipeline.graph.labels.space import GraphSpace, label_graph
from pipeline.graph.silence import silence
from pipeline.graph.slice import prepare

C = "float[1,3,8,8] x"
"""The input of most graphs: one picture of 8 x 8 pixels."""
Y = "float[1,5] y"
"""The output of most graphs: five scores."""
HEAD = "p = GlobalAveragePool(h) f = Flatten(p) y = Gemm<transB = 1>(f, head)"


def widths(model: onnx.ModelProto) -> dict[str, int]:
    """Group -> number of channels."""
    return {group.name: group.channels for group in label_graph(model).space.groups}


def reasons(model: onnx.ModelProto) -> dict[str, str]:
    """Layer that is not prunable -> reason."""
    return {layer.name: layer.reason for layer in label_graph(model).space.frozen}


def misfit(model: onnx.ModelProto) -> float:
    """The largest difference between narrowed and silenced graph, for half of the channels and for all but one of them."""
    labelled = label_graph(model)
    sliceable = prepare(model, labelled)
    generator = np.random.default_rng(1)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    inputs = generator.standard_normal(shape).astype(np.float32)
    worst = 0.0
    for gone in (lambda width: width // 2, lambda width: 1):
        kept = {
            group.name: tuple(sorted(generator.permutation(group.channels)[gone(group.channels) :].tolist()))
            for group in labelled.space.groups
        }
        narrow, silent = answer(sliceable.slice(kept), inputs), answer(silence(model, labelled, kept), inputs)
        assert not np.allclose(silent, answer(model, inputs)), (
            "removing channels changes nothing, so the comparison shows nothing"
        )
        worst = max(worst, largest_difference(silent, narrow))
    return worst


def answer(model: onnx.ModelProto, inputs: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString(), threads=1)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def channels_of(labelled: GraphSpace, tensor: str, axis: int) -> list[int]:
    """The channel number of each position of an axis; 0 for a position that always stays."""
    return labelled.numbers[tensor, axis].tolist()


def test_a_convolution_makes_channels_and_the_next_one_reads_them() -> None:
    model = graph(f"({C}) => ({Y}) {{ h = Conv(x, a, b) {HEAD} }}", a=(6, 3, 1, 1), b=(6,), head=(5, 6))
    assert widths(model) == {"a": 6}
    labelled = label_graph(model)
    assert channels_of(labelled, "a", 0) == channels_of(labelled, "b", 0) == channels_of(labelled, "head", 1)
    assert misfit(model) < 1e-5


def test_the_output_of_the_network_keeps_its_width() -> None:
    model = graph(f"({C}) => ({Y}) {{ h = Conv(x, a) {HEAD} }}", a=(6, 3, 1, 1), head=(5, 6))
    assert reasons(model) == {"head": "its channels are the network's output"}


def test_a_sum_unites_the_channels_of_its_terms() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) t = Conv(s, b) h = Add(s, t) {HEAD} }}", a=(6, 3, 1, 1), b=(6, 6, 1, 1), head=(5, 6)
    )
    assert widths(model) == {"a": 6}
    assert misfit(model) < 1e-5


def test_channels_added_to_the_input_stay() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) t = Relu(s) u = Conv(t, b) h = Add(u, x) {HEAD} }}",
        a=(6, 3, 1, 1),
        b=(3, 6, 1, 1),
        head=(5, 3),
    )
    assert widths(model) == {"a": 6}
    assert "keeps its width" in reasons(model)["b"]
    assert misfit(model) < 1e-5


def test_a_gate_of_one_number_per_channel_follows_them() -> None:
    text = "s = Conv(x, a) g = GlobalAveragePool(s) r = Conv(g, b) q = Relu(r) e = Conv(q, c) i = Sigmoid(e) h = Mul(s, i)"
    model = graph(f"({C}) => ({Y}) {{ {text} {HEAD} }}", a=(6, 3, 1, 1), b=(4, 6, 1, 1), c=(6, 4, 1, 1), head=(5, 6))
    assert widths(model) == {"a": 6, "b": 4}
    assert misfit(model) < 1e-5


def test_a_gate_of_one_number_per_pixel_does_not_mind_the_channels() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) g = Conv(x, b) h = Mul(s, g) {HEAD} }}", a=(6, 3, 1, 1), b=(1, 3, 1, 1), head=(5, 6)
    )
    assert widths(model) == {"a": 6}
    assert misfit(model) < 1e-5


def test_concatenated_channels_stand_one_after_the_other() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) t = Conv(x, b) h = Concat<axis = 1>(s, x, t) {HEAD} }}",
        a=(4, 3, 1, 1),
        b=(6, 3, 1, 1),
        head=(5, 13),
    )
    assert widths(model) == {"a": 4, "b": 6}
    assert channels_of(label_graph(model), "head", 1) == [1, 2, 3, 4, 0, 0, 0, 5, 6, 7, 8, 9, 10]
    assert misfit(model) < 1e-5


@pytest.mark.parametrize("opset", [11, 18])
def test_the_parts_of_a_split_are_narrowed_apart(opset: int) -> None:
    split = "m, n = Split<axis = 1>(s, parts)" if opset > 11 else "m, n = Split<axis = 1, split = [2, 4]>(s)"
    weights: dict[str, tuple[int, ...] | list[int]] = {"parts": [2, 4]} if opset > 11 else {}
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) {split} t = Conv(n, b) h = Concat<axis = 1>(m, t) {HEAD} }}",
        opset,
        a=(6, 3, 1, 1),
        b=(4, 4, 1, 1),
        head=(5, 6),
        **weights,
    )
    assert sorted(widths(model).values()) == [2, 4, 4]
    assert misfit(model) < 1e-5


def test_a_shuffle_loses_the_same_channels_of_each_group() -> None:
    text = "s = Conv(x, a) r = Reshape(s, split) t = Transpose<perm = [0, 2, 1, 3, 4]>(r) h = Reshape(t, merge)"
    model = graph(f"({C}) => ({Y}) {{ {text} {HEAD} }}", a=(6, 3, 1, 1), head=(5, 6), split=[1, 2, 3, 8, 8], merge=[1, 6, 8, 8])
    assert channels_of(label_graph(model), "a", 0) == [1, 2, 3, 1, 2, 3]
    assert channels_of(label_graph(model), "head", 1) == [1, 1, 2, 2, 3, 3]
    assert misfit(model) < 1e-5


def test_a_pixel_shuffle_loses_all_pixels_of_a_channel() -> None:
    model = graph(f"({C}) => ({Y}) {{ s = Conv(x, a) h = DepthToSpace<blocksize = 2>(s) {HEAD} }}", a=(12, 3, 1, 1), head=(5, 3))
    assert widths(model) == {"a": 3}
    assert misfit(model) < 1e-5


def test_a_flattened_channel_takes_all_its_pixels_along() -> None:
    model = graph(f"({C}) => ({Y}) {{ s = Conv(x, a) f = Flatten(s) y = MatMul(f, head) }}", a=(6, 3, 4, 4), head=(150, 5))
    assert channels_of(label_graph(model), "head", 0) == [channel for channel in range(1, 7) for _ in range(25)]
    assert misfit(model) < 1e-5


def test_a_depthwise_convolution_follows_its_input() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) h = Conv<group = 6>(s, b) {HEAD} }}", a=(6, 3, 1, 1), b=(12, 1, 1, 1), head=(5, 12)
    )
    assert widths(model) == {"a": 6}
    assert channels_of(label_graph(model), "b", 0) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    assert misfit(model) < 1e-5


def test_a_grouped_convolution_loses_the_same_channels_of_each_group() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) h = Conv<group = 2>(s, b) {HEAD} }}", a=(6, 3, 1, 1), b=(8, 3, 1, 1), head=(5, 8)
    )
    assert widths(model) == {"a": 3, "b": 4}
    assert misfit(model) < 1e-5


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_transposed_convolution_has_its_inputs_first(groups: int) -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) h = ConvTranspose<group = {groups}>(s, b) {HEAD} }}",
        a=(6, 3, 1, 1),
        b=(6, 4, 2, 2),
        head=(5, 4 * groups),
    )
    assert widths(model)["a"] == {1: 6, 2: 3, 6: 6}[groups]
    assert misfit(model) < 1e-5


def test_padded_channels_leave_with_those_they_are_added_to() -> None:
    text = "s = Conv(x, a) u = Pad(s, pads) t = Conv(s, b) h = Add(u, t)"
    model = graph(
        f"({C}) => ({Y}) {{ {text} {HEAD} }}", a=(4, 3, 1, 1), b=(8, 4, 1, 1), head=(5, 8), pads=[0, 2, 0, 0, 0, 2, 0, 0]
    )
    assert sorted(widths(model).values()) == [4, 4]
    assert misfit(model) < 1e-5


def test_heads_of_attention_leave_whole() -> None:
    text = """
        q1 = MatMul(x, q) k1 = MatMul(x, k) v1 = MatMul(x, v)
        q2 = Reshape(q1, heads) q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
        k2 = Reshape(k1, heads) k3 = Transpose<perm = [0, 2, 3, 1]>(k2)
        v2 = Reshape(v1, heads) v3 = Transpose<perm = [0, 2, 1, 3]>(v2)
        s = MatMul(q3, k3) a = Softmax(s) o = MatMul(a, v3)
        t = Transpose<perm = [0, 2, 1, 3]>(o) r = Reshape(t, flat) y = MatMul(r, proj)
    """
    model = graph(
        f"(float[1,5,8] x) => (float[1,5,8] y) {{ {text} }}",
        q=(8, 12),
        k=(8, 12),
        v=(8, 12),
        proj=(12, 8),
        heads=[1, 5, 4, 3],
        flat=[1, 5, 12],
    )
    assert list(widths(model).values()) == [4], "one group of four heads"
    assert channels_of(label_graph(model), "q", 1) == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert misfit(model) < 1e-5


def test_one_head_of_attention_loses_the_same_channels_of_queries_and_keys() -> None:
    """the product of queries and keys is taken over the channels that are left"""
    text = "q1 = MatMul(x, q) k1 = MatMul(x, k) k2 = Transpose<perm = [0, 2, 1]>(k1) s = MatMul(q1, k2) a = Softmax(s)"
    model = graph(f"(float[1,5,8] x) => (float[1,5,8] y) {{ {text} y = MatMul(a, x) }}", q=(8, 6), k=(8, 6))
    assert widths(model) == {"q": 6}
    assert channels_of(label_graph(model), "k", 1) == [1, 2, 3, 4, 5, 6]
    assert misfit(model) < 1e-5


@pytest.mark.parametrize("norm", ["ReduceL2", "ReduceL1", "ReduceSumSquare", "ReduceSum"])
def test_a_sum_over_channels_is_taken_over_those_that_are_left(norm: str) -> None:
    text = f"s = Conv(x, a) t = Exp(s) n = {norm}<keepdims = 1>(t, over) h = Div(t, n)"
    model = graph(f"({C}) => ({Y}) {{ {text} {HEAD} }}", a=(6, 3, 1, 1), head=(5, 6), over=[1])
    assert widths(model) == {"a": 6}
    assert misfit(model) < 1e-5


def test_a_product_over_another_axis_lets_channels_pass() -> None:
    """two halves of the channels, which are stacked and multiplied"""
    text = (
        "s = Conv(x, a) r = Reshape(s, halves) p = ReduceProd<keepdims = 0>(r, over) f = Flatten(p) y = Gemm<transB = 1>(f, head)"
    )
    model = graph(f"({C}) => ({Y}) {{ {text} }}", a=(6, 3, 8, 8), head=(5, 3), halves=[1, 2, 3, 1, 1], over=[1])
    assert channels_of(label_graph(model), "a", 0) == [1, 2, 3, 1, 2, 3]
    assert misfit(model) < 1e-5


def test_layer_normalisation_is_taken_over_the_channels_that_are_left() -> None:
    text = "s = MatMul(x, a) n = LayerNormalization(s, scale, bias) y = MatMul(n, b)"
    model = graph(f"(float[1,5,8] x) => (float[1,5,4] y) {{ {text} }}", a=(8, 6), scale=(6,), bias=(6,), b=(6, 4))
    assert widths(model) == {"a": 6}
    assert misfit(model) < 1e-5


def test_group_normalisation_loses_the_same_channels_of_each_group() -> None:
    text = "s = Conv(x, a) r = Reshape(s, groups) n = InstanceNormalization(r, one, zero) h = Reshape(n, back)"
    model = graph(
        f"({C}) => ({Y}) {{ {text} {HEAD} }}",
        a=(6, 3, 1, 1),
        one=(2,),
        zero=(2,),
        head=(5, 6),
        groups=[1, 2, 192],
        back=[1, 6, 8, 8],
    )
    assert channels_of(label_graph(model), "a", 0) == [1, 2, 3, 1, 2, 3]
    assert misfit(model) < 1e-5


def test_a_softmax_over_channels_keeps_them() -> None:
    model = graph(f"({C}) => ({Y}) {{ s = Conv(x, a) h = Softmax<axis = 1>(s) {HEAD} }}", a=(6, 3, 1, 1), head=(5, 6))
    assert "Softmax" in reasons(model)["a"]
    assert not widths(model)


def test_a_recurrent_layer_reads_channels() -> None:
    text = "s = MatMul(x, a) o, last = GRU<hidden_size = 4>(s, w, r) q = Squeeze(last, axis) y = MatMul(q, b)"
    model = graph(f"(float[5,1,8] x) => (float[1,3] y) {{ {text} }}", a=(8, 6), w=(1, 12, 6), r=(1, 12, 4), b=(4, 3), axis=[0])
    assert widths(model) == {"a": 6}
    assert channels_of(label_graph(model), "w", 2) == [1, 2, 3, 4, 5, 6]
    assert misfit(model) < 1e-5


def test_a_weight_that_is_used_twice_couples_both_uses() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) t = Conv(x, a) u = Relu(t) h = Concat<axis = 1>(s, u) {HEAD} }}",
        a=(6, 3, 1, 1),
        head=(5, 12),
    )
    assert channels_of(label_graph(model), "head", 1) == [1, 2, 3, 4, 5, 6] * 2
    assert misfit(model) < 1e-5


def test_an_operator_without_a_rule_keeps_what_it_reads_and_names_itself() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) t = Relu(s) u = Conv(t, b) d = Det(u) e = Unsqueeze(d, axes) h = Mul(u, e) {HEAD} }}",
        a=(4, 3, 1, 1),
        b=(6, 4, 1, 1),
        head=(5, 6),
        axes=[2, 3],
    )
    assert widths(model) == {"a": 4}
    assert "Det" in reasons(model)["b"]


def test_every_kept_width_runs_down_to_one_channel() -> None:
    model = graph(
        f"({C}) => ({Y}) {{ s = Conv(x, a) h = Conv<group = 6>(s, b) {HEAD} }}", a=(6, 3, 1, 1), b=(6, 1, 1, 1), head=(5, 6)
    )
    labelled = label_graph(model)
    for width in range(1, 7):
        narrow = prepare(model, labelled).slice({"a": tuple(range(width))})
        assert answer(narrow, np.ones((1, 3, 8, 8), np.float32)).shape == (1, 5)
        assert next(entry.i for entry in narrow.graph.node[1].attribute if entry.name == "group") == width
