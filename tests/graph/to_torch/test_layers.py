"""Nodes that become torch modules: each answers like ONNX's reference evaluator, and is the module that it should be."""

import copy

import numpy as np
import onnx
import pytest
import torch
from helpers.rebuilt import by_reference, by_runtime, by_torch, difference, graph, network_of, random, rebuilt
from numpy.typing import NDArray
from torch import nn

from pipeline.graph.to_torch import TorchTensor, write_back

IMAGE = random(2, 4, 7, 6)
Weights = dict[str, NDArray[np.generic]]


def check(text: str, weights: Weights, kind: type[nn.Module], x: NDArray[np.float32] = IMAGE, opset: int = 18) -> nn.Module:
    """The layer of a graph of one node, whose answer was compared"""
    model = graph(text, weights, opset)
    network = network_of(model)
    (layer,) = (module for module in network.modules() if isinstance(module, kind))

    assert difference(by_torch(network, x), by_runtime(model, x)) < 1e-5
    (double,) = by_torch(network.double(), x.astype(np.float64))
    assert double.dtype == np.float64
    assert difference([double.astype(np.float32)], by_runtime(model, x)) < 1e-5
    assert set(network.tensors) == set(weights)
    return layer


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "<pads=[1,1,1,1], strides=[2,2]>",
        "<pads=[0,1,2,1]>",
        '<auto_pad="SAME_UPPER", strides=[2,2]>',
        '<auto_pad="SAME_LOWER", strides=[2,2]>',
        '<auto_pad="VALID">',
        "<dilations=[2,1], pads=[2,1,2,1]>",
    ],
)
@pytest.mark.parametrize("group", [1, 2])
def test_convolution(attributes: str, group: int) -> None:
    attributes = f"<group={group}, {attributes[1:]}" if attributes else f"<group={group}>"
    text = f"(float[2,4,7,6] x) => (float[N,C,H,W] y) {{ y = Conv {attributes} (x, w, b) }}"

    layer = check(text, {"w": random(6, 4 // group, 3, 3), "b": random(6)}, nn.Conv2d)

    assert (layer.in_channels, layer.out_channels, layer.groups) == (4, 6, group)


@pytest.mark.parametrize(("shape", "kind"), [((2, 4, 9), nn.Conv1d), ((2, 4, 5, 4, 3), nn.Conv3d)])
def test_convolution_of_one_and_three_axes(shape: tuple[int, ...], kind: type[nn.Module]) -> None:
    dims = ",".join(map(str, shape))

    check(
        f"(float[{dims}] x) => (float[N,C] y) {{ y = Conv (x, w) }}",
        {"w": random(6, 4, *[2] * (len(shape) - 2))},
        kind,
        random(*shape),
    )


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>",
        "<strides=[2,1], pads=[0,1,1,0]>",
        "<group=2, dilations=[2,2]>",
    ],
)
def test_transposed_convolution(attributes: str) -> None:
    text = f"(float[2,4,7,6] x) => (float[N,C,H,W] y) {{ y = ConvTranspose {attributes} (x, w, b) }}"
    width = 3
    group = 2 if "group" in attributes else 1

    check(text, {"w": random(4, width, 3, 3), "b": random(width * group)}, nn.ConvTranspose2d)


@pytest.mark.parametrize(
    "attributes",
    ['<auto_pad="SAME_UPPER", strides=[2,2]>', '<auto_pad="SAME_LOWER", strides=[2,2]>', "<output_shape=[14,12], strides=[2,2]>"],
)
def test_transposed_convolution_of_a_wanted_size(attributes: str) -> None:
    model = graph(
        f"(float[2,4,7,6] x) => (float[N,C,H,W] y) {{ y = ConvTranspose {attributes} (x, w) }}", {"w": random(4, 3, 3, 3)}
    )

    assert difference(by_torch(network_of(model), IMAGE), by_runtime(model, IMAGE)) < 1e-5


@pytest.mark.parametrize(("transposed", "shape", "axes"), [(0, (6, 5), (1, 0)), (1, (5, 6), (0, 1))])
@pytest.mark.parametrize(("bias", "place"), [((5,), (0,)), ((1, 5), (-1, 0)), (None, None)])
def test_gemm(
    transposed: int, shape: tuple[int, int], axes: tuple[int, int], bias: tuple[int, ...] | None, place: tuple[int, ...]
) -> None:
    weights: Weights = {"fc.weight": random(*shape)} | ({} if bias is None else {"fc.bias": random(*bias)})
    text = f"(float[3,6] x) => (float[3,5] y) {{ y = Gemm <transB={transposed}> (x, {', '.join(weights)}) }}"

    network = rebuilt(text, weights)

    check(text, weights, nn.Linear, random(3, 6))
    assert network.tensors["fc.weight"] == TorchTensor("fc.weight", axes)
    assert network.tensors.get("fc.bias") == (None if bias is None else TorchTensor("fc.bias", place))


@pytest.mark.parametrize("attributes", ["<alpha=0.5>", "<beta=2.0>", "<transA=1>"])
def test_gemm_that_no_linear_layer_can_express(attributes: str) -> None:
    model = graph(f"(float[6,6] x) => (float[6,5] y) {{ y = Gemm {attributes} (x, w, b) }}", {"w": random(6, 5), "b": random(5)})
    x = random(6, 6)

    assert difference(by_torch(network_of(model), x), by_reference(model, x)) < 1e-5


def test_product_with_a_weight_takes_the_bias_that_is_added_to_it() -> None:
    text = "(float[2,3,6] x) => (float[2,3,5] y) { a = MatMul (x, w)  y = Add (b, a) }"

    layer = check(text, {"w": random(6, 5), "b": random(5)}, nn.Linear, random(2, 3, 6))

    assert layer.bias is not None


def test_product_that_is_read_twice_keeps_its_bias_apart() -> None:
    text = "(float[2,6] x) => (float[2,5] y) { a = MatMul (x, w)  c = Add (a, b)  y = Mul (a, c) }"

    layer = check(text, {"w": random(6, 5), "b": random(5)}, nn.Linear, random(2, 6))

    assert layer.bias is None


NORM: Weights = {"n.weight": random(4), "n.bias": random(4), "n.running_mean": random(4), "n.running_var": np.abs(random(4)) + 1}


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((5, 4), nn.BatchNorm1d), ((2, 4, 3), nn.BatchNorm1d), ((2, 4, 3, 3), nn.BatchNorm2d), ((2, 4, 2, 2, 2), nn.BatchNorm3d)],
)
def test_batch_normalisation(shape: tuple[int, ...], kind: type[nn.Module]) -> None:
    dims = ",".join(map(str, shape))
    text = f"(float[{dims}] x) => (float[{dims}] y) {{ y = BatchNormalization <epsilon=1.0e-3> (x, {', '.join(NORM)}) }}"

    layer = check(text, NORM, kind, random(*shape))

    assert (layer.momentum, layer.eps) == (0.1, 1e-3)


def test_batch_normalisation_in_training_mode_is_torchs() -> None:
    text = f"(float[5,4] x) => (float[5,4] y) {{ y = BatchNormalization <momentum=0.8> (x, {', '.join(NORM)}) }}"
    network, wanted, x = rebuilt(text, NORM).train(), nn.BatchNorm1d(4, momentum=0.2), torch.from_numpy(random(5, 4))
    wanted.load_state_dict({name.removeprefix("n."): torch.from_numpy(values) for name, values in NORM.items()}, strict=False)

    assert torch.equal(network(x), wanted(x))
    assert all(torch.equal(network.state_dict()[f"n.{name}"], value) for name, value in wanted.state_dict().items())


def test_batch_normalisation_whose_statistics_belong_to_another_layer_only_reads_them() -> None:
    text = f"""(float[5,4] x) => (float[5,4] y) {{
        a = BatchNormalization (x, {", ".join(NORM)})
        y = BatchNormalization (a, s, {", ".join(list(NORM)[1:])})
    }}"""
    network = rebuilt(text, NORM | {"s": random(4)}).train()

    network(torch.from_numpy(random(5, 4)))

    assert [type(module) for module in network.modules() if isinstance(module, nn.BatchNorm1d)] == [nn.BatchNorm1d]
    assert int(network.state_dict()["n.num_batches_tracked"]) == 1


def test_layer_normalisation() -> None:
    weights: Weights = {"w": random(7, 6), "b": random(7, 6)}

    check(
        "(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = LayerNormalization <axis=2, epsilon=1.0e-3> (x, w, b) }",
        weights,
        nn.LayerNorm,
    )
    check("(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = LayerNormalization <axis=-1> (x, w) }", {"w": random(6)}, nn.LayerNorm)


def test_layer_normalisation_with_a_scale_for_one_axis_of_two_stays_a_function() -> None:
    model = graph("(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = LayerNormalization <axis=2> (x, w) }", {"w": random(6)})

    assert difference(by_torch(network_of(model), IMAGE), by_reference(model, IMAGE)) < 1e-5


def test_instance_normalisation() -> None:
    weights: Weights = {"w": random(4), "b": random(4)}

    check(
        "(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = InstanceNormalization <epsilon=1.0e-3> (x, w, b) }",
        weights,
        nn.InstanceNorm2d,
    )


def test_group_normalisation_with_a_scale_per_channel() -> None:
    weights: Weights = {"w": random(4), "b": random(4)}

    layer = check(
        "(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = GroupNormalization <num_groups=2> (x, w, b) }",
        weights,
        nn.GroupNorm,
        opset=21,
    )

    assert layer.num_groups == 2


def test_group_normalisation_with_a_scale_per_group() -> None:
    model = graph(
        "(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = GroupNormalization <num_groups=2> (x, w, b) }",
        {"w": random(2), "b": random(2)},
    )

    assert difference(by_torch(network_of(model), IMAGE), by_reference(model, IMAGE)) < 1e-5


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 1, 1), (0, -1, -1)), ((1, 4, 1, 1), (-1, 0, -1, -1)), ((1,), (0,)), ((1, 1, 1), (-1, -1, 0))]
)
def test_prelu_with_a_slope_per_channel_or_one(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    text, weights = "(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = PRelu (x, w) }", {"w": random(*shape)}

    check(text, weights, nn.PReLU)

    assert rebuilt(text, weights).tensors["w"] == TorchTensor("w.weight", axes)


def test_prelu_with_a_slope_per_column_stays_a_function() -> None:
    model = graph("(float[2,4,7,6] x) => (float[2,4,7,6] y) { y = PRelu (x, w) }", {"w": random(6)})

    assert difference(by_torch(network_of(model), IMAGE), by_reference(model, IMAGE)) < 1e-6


@pytest.mark.parametrize(("node", "opset"), [("Dropout <ratio=0.25> (x)", 10), ("Dropout (x, r)", 13)])
def test_dropout_drops_in_training_mode_only(node: str, opset: int) -> None:
    weights: Weights = {"r": np.array(0.25, np.float32)} if opset == 13 else {}
    network = rebuilt(f"(float[1000] x) => (float[1000] y) {{ y = {node} }}", weights, opset)
    x = torch.ones(1000)

    (layer,) = (module for module in network.modules() if isinstance(module, nn.Dropout))

    assert layer.p == 0.25
    assert torch.equal(network(x), x)
    torch.manual_seed(0)
    assert sorted(set(network.train()(x).tolist())) == pytest.approx([0, 1 / 0.75])


def test_nodes_with_the_same_weight_share_one_parameter() -> None:
    text = "(float[2,6] x) => (float[2,6] y) { a = Gemm <transB=1> (x, w)  b = Gemm <transB=1> (a, w)  c = Gemm (b, w)  y = MatMul (w, c) }"
    model = graph(text.replace("2,6", "6,6"), {"w": random(6, 6)})
    network, x = network_of(model), random(6, 6)

    assert [name for name, _ in network.named_parameters()] == ["w.weight"]
    assert difference(by_torch(network, x), by_reference(model, x)) < 1e-5


def test_names_that_torch_does_not_allow_are_changed_and_stay_unique() -> None:
    text = "(float[2,6] x) => (float[2,6] y) { a = Gemm (x, w1)  b = Gemm (a, w2)  c = Gemm (b, w3)  d = Add (c, w4)  y = Mul (d, w5) }"
    model = graph(text, {name: random(6, 6) if name < "w4" else random(6) for name in ("w1", "w2", "w3", "w4", "w5")})
    names = {"w1": "forward.weight", "w2": "a/b.weight", "w3": "a_b.weight", "w4": "a_b.bias", "w5": "a.b..c"}
    for proto in (*model.graph.initializer, *model.graph.node):
        if isinstance(proto, onnx.TensorProto):
            proto.name = names[proto.name]
        else:
            proto.input[1] = names[proto.input[1]]
    network, x = network_of(model), random(2, 6)

    assert {names[key]: network.tensors[names[key]].name for key in names} == {
        "forward.weight": "forward_2.weight",
        "a/b.weight": "a_b.weight",
        "a_b.weight": "a_b_2.weight",
        "a_b.bias": "a_b.bias_2",
        "a.b..c": "a.b._.c",
    }
    assert {place.name for place in network.tensors.values()} == set(network.state_dict())
    assert difference(by_torch(network, x), by_reference(model, x)) < 1e-5


def test_a_copy_shares_nothing_and_takes_tensors_from_the_memo() -> None:
    model = graph(
        "(float[2,6] x) => (float[2,5] y) { a = MatMul (x, w)  b = Add (a, c)  y = Mul (b, s) }",
        {"w": random(6, 5), "c": random(5), "s": random(5)},
    )
    network, x = network_of(model), torch.from_numpy(random(2, 6))
    twin = copy.deepcopy(network)
    doubled = copy.deepcopy(
        network, {id(network.w.weight): nn.Parameter(network.w.weight.detach() * 2), id(network.s): network.s * 3}
    )

    with torch.no_grad():
        before = network(x).clone()
        for tensor in twin.state_dict().values():
            tensor.zero_()

    assert torch.equal(network(x), before)
    assert not twin(x).any()
    assert torch.allclose(doubled(x), (x @ network.w.weight.T * 2 + network.w.bias) * network.s * 3)


def test_values_are_written_back_in_the_graphs_own_layout() -> None:
    model = graph(
        "(float[2,4] x) => (float[2,4] y) { a = Gemm (x, w, b)  c = PRelu (a, p)  d = BatchNormalization (c, n1, n2, n3, n4)  y = Mul (d, s) }",
        {
            "w": random(4, 4),
            "b": random(1, 4),
            "p": random(1, 1),
            **dict(zip(("n1", "n2", "n3", "n4"), NORM.values(), strict=True)),
            "s": random(1),
        },
    )
    network, x = network_of(model).train(), random(2, 4)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    network(torch.from_numpy(x)).square().sum().backward()
    optimiser.step()

    for trained in (write_back(network, model), write_back(network.state_dict(), model)):
        assert difference(by_reference(trained, x), by_torch(network.eval(), x)) < 1e-5
        assert difference(by_reference(trained, x), by_reference(model, x)) > 1e-3


def test_only_named_initializers_are_trained() -> None:
    text, weights = (
        "(float[2,6] x) => (float[2,5] y) { a = Gemm (x, w, b)  y = Mul (a, s) }",
        {"w": random(6, 5), "b": random(5), "s": random(5)},
    )

    def trained(network: nn.Module) -> set[str]:
        return {name for name, parameter in network.named_parameters() if parameter.requires_grad}

    assert trained(network_of(graph(text, weights))) == {"w.weight", "w.bias"}
    assert trained(network_of(graph(text, weights), {"w", "s"})) == {"w.weight", "s"}
