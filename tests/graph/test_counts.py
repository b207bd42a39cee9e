"""Counts: operations and parameters of the file, not of the module that it was exported from."""

import math

import onnx
import pytest
import torch
from helpers.analysed import exported, exported_trainable
from helpers.families import FAMILIES
from helpers.graphs import HEAD, with_weights
from helpers.nets import EXAMPLE, ZOO, build
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import TraceError
from pipeline.graph.counts import layer_macs, macs, params
from pipeline.graph.export import export_trainable
from pipeline.graph.fold import fold
from pipeline.graph.int8 import SCHEMES, Quantiser
from pipeline.graph.metadata import stamp
from pipeline.graph.structure import load_graph


def graph(body: str, opset: int = 18, **weights: tuple[int, ...]) -> onnx.ModelProto:
    return load_graph(with_weights(f"{HEAD.replace('18', str(opset))} net {body}", weights, seed=0))


OPERATORS = {
    "convolution of two images": (
        graph("(float[2,6,9,9] x) => (float[2,8,7,7] y) { y = Conv <group = 2> (x, w) }", w=(8, 3, 3, 3)),
        7 * 7 * 8 * 3 * 9,
    ),
    "convolution in three dimensions": (
        graph("(float[1,3,5,6,7] x) => (float[1,4,4,5,6] y) { y = Conv (x, w) }", w=(4, 3, 2, 2, 2)),
        4 * 5 * 6 * 4 * 3 * 8,
    ),
    "transposed convolution": (
        graph(
            "(float[1,6,5,5] x) => (float[1,8,10,10] y) { y = ConvTranspose <strides = [2,2], group = 2> (x, w) }", w=(6, 4, 2, 2)
        ),
        5 * 5 * 6 * 4 * 4,
    ),
    "linear": (graph("(float[1,6] x) => (float[1,8] y) { y = Gemm <transB = 1> (x, w) }", w=(8, 6)), 6 * 8),
    "linear of a transposed batch": (
        graph("(float[6,1] x) => (float[1,8] y) { y = Gemm <transA = 1> (x, w) }", w=(6, 8)),
        6 * 8 // 6,
    ),
    "product of rows": (graph("(float[2,7,6] x) => (float[2,7,8] y) { y = MatMul (x, w) }", w=(6, 8)), 7 * 6 * 8),
    "product of two activations": (
        graph("(float[2,4,7,6] x, float[2,4,6,5] z) => (float[2,4,7,5] y) { y = MatMul (x, z) }"),
        4 * 7 * 6 * 5,
    ),
    "product with one vector for all rows": (
        graph("(float[1,7,6] x, float[6] z) => (float[1,7] y) { y = MatMul (x, z) }"),
        7 * 6,
    ),
    "recurrent layer": (
        graph("(float[7,2,6] x) => (float[7,1,2,5] y) { y = RNN <hidden_size = 5> (x, w, r) }", w=(1, 5, 6), r=(1, 5, 5)),
        7 * 2 * 5 * (6 + 5) // 7,
    ),
    "GRU over images": (
        graph(
            "(float[2,7,6] x) => (float[2,7,1,5] y) { y = GRU <hidden_size = 5, layout = 1> (x, w, r) }",
            w=(1, 15, 6),
            r=(1, 15, 5),
        ),
        7 * 3 * 5 * (6 + 5),
    ),
    "LSTM in both directions": (
        graph(
            '(float[1,7,6] x) => (float[7,2,1,5] y) { t = Transpose <perm = [1,0,2]> (x)  y = LSTM <hidden_size = 5, direction = "bidirectional"> (t, w, r) }',
            w=(2, 20, 6),
            r=(2, 20, 5),
        ),
        2 * 7 * 4 * 5 * (6 + 5),
    ),
    "attention of four heads": (
        graph("(float[1,4,7,6] q, float[1,4,9,6] k, float[1,4,9,5] v) => (float[1,4,7,5] y) { y = Attention (q, k, v) }", 23),
        4 * 7 * 9 * (6 + 5),
    ),
    "attention whose heads lie side by side": (
        graph(
            "(float[1,7,24] q, float[1,9,12] k, float[1,9,10] v) => (float[1,7,20] y) { y = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v) }",
            23,
        ),
        4 * 7 * 9 * (6 + 5),
    ),
    "einsum": (
        graph('(float[2,7,4,6] x) => (float[2,4,7,5] y) { y = Einsum <equation = "bqhd, dk -> bhqk"> (x, w) }', w=(6, 5)),
        7 * 4 * 6 * 5,
    ),
    "einsum with dots": (
        graph('(float[2,4,7,6] x, float[4,6,5] z) => (float[2,4,7,5] y) { y = Einsum <equation = "...ij,...jk->...ik"> (x, z) }'),
        4 * 7 * 6 * 5,
    ),
    "einsum of three": (
        graph('(float[1,7,6] x) => (float[1,7,9] y) { y = Einsum <equation = "bij,jk,kl->bil"> (x, w, u) }', w=(6, 5), u=(5, 9)),
        7 * 6 * 5 + 7 * 5 * 9,
    ),
    "einsum of one": (graph('(float[1,7,6] x) => (float[1,6,7] y) { y = Einsum <equation = "bij->bji"> (x) }'), 0),
    "no products": (graph("(float[1,6] x) => (float[1,6] y) { z = Relu (x)  y = Add (z, w) }", w=(6,)), 0),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_counts_its_products_for_one_input(name: str) -> None:
    model, expected = OPERATORS[name]

    assert macs(model) == expected


@pytest.mark.parametrize("name", ["grouped", "transposed", "flatten", "vit"])
def test_a_network_counts_as_many_operations_as_by_torch_s_own_counter(name: str) -> None:
    """torch counts two operations for a multiplication and an addition"""
    module, example = (build(ZOO[name]), EXAMPLE) if name in ZOO else FAMILIES[name]()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        module(example)
    trainable = exported_trainable(ZOO[name]) if name in ZOO else export_trainable(module, example, 18, 9)

    assert macs(trainable) == macs(fold(trainable).model) == counter.get_total_flops() // 2 > 0


def test_operations_are_listed_by_weight_and_products_of_activations_by_node() -> None:
    """a weight that is used twice has one row"""
    body = """(float[1,8,6] x) => (float[1,8,8] y) {
        a = MatMul (x, first)  b = MatMul (a, first)
        t = Transpose <perm = [0,2,1]> (b)  y = MatMul (a, t)
    }"""
    model = graph(body, first=(6, 6))
    model.graph.node[3].name = "scores"

    assert layer_macs(model) == {"first": 2 * 8 * 6 * 6, "scores": 8 * 8 * 6}


def test_weights_may_lack_their_values() -> None:
    model = exported(ZOO["residual"])
    expected = macs(model), params(model)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.ClearField("raw_data")

    assert (macs(model), params(model)) == expected


def test_a_shape_that_depends_on_the_values_of_the_input_is_an_error_with_the_node() -> None:
    model = graph(
        "(float[1,6] x) => (float[N,8] y) { n = NonZero (x)  t = Transpose (n)  f = Cast <to = 1> (t)  y = Gemm (f, w) }",
        w=(2, 8),
    )
    model.graph.node[3].name = "head"

    with pytest.raises(
        TraceError, match=r"the operations of 'head' \(Gemm\) cannot be counted: the shape of 'y' is not known; it must"
    ):
        macs(model)


def test_an_operator_that_runs_only_sometimes_is_an_error() -> None:
    branches = "then_branch = t () => (float[1,8] p) { p = MatMul(x, w) }, else_branch = e () => (float[1,8] q) { q = Neg(x) }"
    model = graph(f"(bool c, float[1,8] x) => (float[1,8] y) {{ y = If (c) <{branches}> }}", w=(8, 8))
    model.graph.node[0].name = "choice"

    with pytest.raises(TraceError, match=r"cannot be counted: 'choice' \(If\) decides whether MatMul runs"):
        macs(model)


def test_parameters_of_the_trainable_graph_are_the_module_s() -> None:
    learnable = sum(tensor.numel() for tensor in build(ZOO["unfolded"]).parameters())

    assert params(exported_trainable(ZOO["unfolded"])) == learnable


def test_a_batchnorm_that_is_folded_counts_as_a_bias_and_one_that_stays_as_scale_and_shift() -> None:
    """conv(3 -> 6) with a bias, BatchNorm(6), conv(6 -> 8) and its folded BatchNorm, linear(8 -> 5)"""
    expected = 3 * 6 * 9 + 6 + 2 * 6 + 6 * 8 * 9 + 8 + 8 * 5 + 5

    assert params(fold(exported_trainable(ZOO["unfolded"])).model) == params(exported(ZOO["unfolded"])) == expected


def test_weights_that_never_reach_the_file_and_constants_are_not_parameters() -> None:
    """x * mask -> linear(4 -> 5); a head for training alone; a mask that is not learnt; a learnt factor of one number"""

    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.auxiliary, self.factor = nn.Linear(4, 5), nn.Linear(4, 9), nn.Parameter(torch.ones(()))
            self.register_buffer("mask", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x * self.mask * self.factor + 0.5)

    assert params(export_trainable(Auxiliary(), torch.randn(1, 4), 18, 9)) == 4 * 5 + 5 + 1


def test_parts_of_a_constant_in_a_slice_are_constants() -> None:
    model = graph("(float[1,6] x) => (float[1,6] y) { y = Add (x, mask) }", mask=(6,))
    stamp(model, {"constants": '["mask"]'})
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "mask#1"

    assert params(model) == 0


def test_an_int8_file_has_the_operations_and_parameters_of_its_float32_file() -> None:
    """convolutions of 3 -> 8 and 8 -> 8 channels on 16x16 pixels, linear(8 -> 5)"""
    data = with_weights(
        f"""{HEAD} net (float[1,3,16,16] x) => (float[1,5] y) {{
            a = Conv <pads = [1,1,1,1]> (x, w1)  b = Relu (a)  c = Conv <pads = [1,1,1,1]> (b, w2, bias)
            d = GlobalAveragePool (c)  e = Flatten (d)  y = Gemm (e, w3)
        }}""",
        {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "bias": (8,), "w3": (8, 5)},
        seed=0,
    )
    inputs = torch.randn(2, 3, 16, 16).numpy()
    int8 = load_graph(Quantiser(data, inputs).make(SCHEMES[0]))

    assert params(load_graph(data)) == params(int8) == 8 * 3 * 9 + 8 * 8 * 9 + 8 + 8 * 5
    assert macs(load_graph(data)) == macs(int8) == 256 * (8 * 3 * 9 + 8 * 8 * 9) + 8 * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gmacs", "parameters"),
    [("vit_b_16", 17.56, 86_567_656), ("resnet18", 1.81, 11_689_512), ("shufflenet_v2_x0_5", 0.04, 1_366_792)],
)
def test_torchvision_s_networks_count_as_published(name: str, gmacs: float, parameters: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = export_trainable(getattr(torchvision.models, name)(), torch.randn(1, 3, 224, 224), 18, 9)

    assert params(model) == parameters
    assert math.isclose(macs(model) / 1e9, gmacs, abs_tol=0.01)
