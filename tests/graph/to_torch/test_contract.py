"""What the rest of the program relies on: constants that follow a narrowing, float types, training, and refusals in one line."""

import numpy as np
import onnx
import pytest
import torch
from helpers.nets import EXAMPLE
from helpers.rebuilt import by_reference, by_torch, difference, graph, network_of, random, rebuilt
from torch import Tensor, nn

from pipeline.errors import TraceError, WeightsError
from pipeline.graph.exporters import captured
from pipeline.graph.to_torch import GraphNetwork, write_back
from pipeline.graph.to_torch.places import to_initializer

X = random(1, 6, 4, 4)


@pytest.mark.parametrize(
    ("node", "constants", "wanted"),
    [
        ("s = Constant <value_ints=[1, 96]> ()  y = Reshape (x, s)", {"shape": (2, -1)}, lambda x: x.reshape(2, -1)),
        ("s = Constant <value_ints=[2, 4]> ()  y, z = Split <axis=1> (x, s)", {"split": (1, 5)}, lambda x: x[:, :1]),
        ("s = Constant <value_ints=[1, 6, 4, 4]> ()  y = Expand (x, s)", {"shape": (2, 6, 4, 4)}, lambda x: x.expand(2, 6, 4, 4)),
        ("i = Constant <value_ints=[0, 1]> ()  y = Gather <axis=1> (x, i)", {"indices": (2, 3, 5)}, lambda x: x[:, [2, 3, 5]]),
        ("i = Constant <value_int=0> ()  y = Gather <axis=1> (x, i)", {"indices": (2,)}, lambda x: x[:, 2]),
        (
            "a = Constant <value_ints=[0]> ()  b = Constant <value_ints=[3]> ()  c = Constant <value_ints=[1]> ()  y = Slice (x, a, b, c)",
            {"starts": (1,), "ends": (5,)},
            lambda x: x[:, 1:5],
        ),
        (
            "p = Constant <value_ints=[0, 0, 0, 0, 0, 2, 0, 0]> ()  y = Pad (x, p)",
            {"pads": (0, 1, 0, 0, 0, 0, 0, 0)},
            lambda x: nn.functional.pad(x, (0, 0, 0, 0, 1, 0)),
        ),
        (
            "s = Constant <value_ints=[1, 6, 8, 8]> ()  y = Resize (x, , , s)",
            {"sizes": (1, 6, 12, 12)},
            lambda x: nn.functional.interpolate(x, scale_factor=3),
        ),
    ],
)
def test_constants_of_a_node_can_be_replaced(node: str, constants: dict[str, tuple[int, ...]], wanted: object) -> None:
    network = rebuilt(f"(float[1,6,4,4] x) => (float[A] y) {{ {node} }}")
    index = max(step.node.index for step in network._steps)

    network.set_constants(index, constants)

    assert torch.equal(network(torch.from_numpy(X)), wanted(torch.from_numpy(X)))  # type: ignore[operator]


def test_a_replaced_constant_changes_its_node_only() -> None:
    network = rebuilt(
        "(float[1,96] x) => (float[A] y, float[A] z) { s = Constant <value_ints=[1, 2, 48]> ()  y = Reshape (x, s)  z = Reshape (x, s) }"
    )

    network.set_constants(2, {"shape": (0, 3, -1)})
    y, z = network(torch.zeros(5, 96))

    assert (tuple(y.shape), tuple(z.shape)) == ((5, 2, 48), (5, 3, 32))


def test_groups_of_a_convolution_and_of_a_normalisation_can_be_replaced() -> None:
    text = """(float[1,6,4,4] x) => (float[A] y) { a = Conv <group=6> (x, w)  y = GroupNormalization <num_groups=6> (a, s, b) }"""
    network = rebuilt(text, {"w": random(6, 1, 1, 1), "s": random(6), "b": random(6)}, opset=21)

    network.set_constants(0, {"group": (3,)})
    network.set_constants(1, {"num_groups": (2,)})

    assert (network.w.groups, network.s.num_groups) == (3, 2)


def test_a_node_or_constant_that_is_not_there_is_refused() -> None:
    network = rebuilt("(float[1,96] x) => (float[A] y) { y = Relu (x) }")

    with pytest.raises(KeyError):
        network.set_constants(7, {"shape": (1,)})
    with pytest.raises(KeyError):
        network.set_constants(0, {"shape": (1,)})


class Normalised(nn.Module):
    """x -> conv(8) -> norm of each kind -> prelu -> hard swish -> mean -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.slope, self.head = nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Linear(8, 5)
        self.norms = nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.slope(self.norms(self.stem(x)))) * 0.7
        return self.head(nn.functional.layer_norm(x.mean((2, 3)), (8,)))


class Tokens(nn.Module):
    """x -> patches -> token and positions -> attention -> MLP -> linear"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 8, 2, 2), nn.MultiheadAttention(8, 2, batch_first=True)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 17, 8))
        self.norm, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        n = self.norm(x)
        x = x + self.attention(n, n, n, need_weights=False)[0]
        return self.head((x + self.down(nn.functional.gelu(self.up(x))))[:, 0])


def pair(make: type[nn.Module]) -> tuple[nn.Module, GraphNetwork]:
    """A network and its rebuilt twin. All its parameters are trained."""
    torch.manual_seed(0)
    module = make().eval()
    model = captured(module, EXAMPLE, 18)
    return module, network_of(model, {tensor.name for tensor in model.graph.initializer})


@pytest.mark.parametrize("make", [Normalised, Tokens])
def test_a_rebuilt_network_has_the_answers_and_gradients_of_the_users_module(make: type[nn.Module]) -> None:
    module, network = pair(make)
    batch = torch.from_numpy(random(3, *EXAMPLE.shape[1:]))

    for double in (False, True):
        for net in (module, network):
            net.to(torch.float64 if double else torch.float32).zero_grad()
        x = batch.double() if double else batch
        assert torch.allclose(network(x), module(x), rtol=0, atol=1e-6 if double else 1e-5)
        module(x).square().sum().backward()
        network(x).square().sum().backward()
        wanted = {name: parameter.grad for name, parameter in module.named_parameters()}
        found = {network.tensors[name].name: name for name in wanted if name in network.tensors}
        assert found
        for name, parameter in network.named_parameters():
            if name in found:
                grad = to_initializer(parameter.grad, network.tensors[found[name]].axes)
                assert torch.allclose(grad, wanted[found[name]], rtol=1e-3, atol=1e-6 if double else 1e-4), name


@pytest.mark.parametrize("make", [Normalised, Tokens])
def test_a_rebuilt_network_runs_in_float64_and_under_autocast(make: type[nn.Module]) -> None:
    _, network = pair(make)
    batch = torch.from_numpy(random(3, *EXAMPLE.shape[1:]))
    exact = network(batch)

    with torch.autocast("cpu", torch.bfloat16):
        rough = network(batch)
    double = network.double()(batch.double())

    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), exact, atol=1e-5)
    assert torch.allclose(rough.float(), exact, atol=0.1)


BLOCK = """(float[1,3,8,8] x) => (float[1,5] y) {
    a = Conv <pads=[1,1,1,1]> (x, stem.weight)
    b = BatchNormalization (a, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    c = Relu (b)
    d = Conv <pads=[1,1,1,1]> (c, inner.weight, inner.bias)
    e = Add (c, d)
    f = GlobalAveragePool (e)
    g = Flatten (f)
    h = Dropout <seed=0> (g, ratio)
    y = Gemm <transB=1> (h, head.weight, head.bias)
}"""


class Block(nn.Module):
    """x -> conv(6) -> BatchNorm -> relu -+-> conv(6) -+-> mean -> dropout -> linear
    +-------------+"""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.inner = nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, 1, 1)
        self.dropout, self.head = nn.Dropout(0.3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.dropout((x + self.inner(x)).mean((2, 3))))


def block() -> tuple[Block, onnx.ModelProto]:
    """A network and its trainable graph, written by hand"""
    torch.manual_seed(0)
    module = Block()
    nn.init.uniform_(module.norm.running_var, 0.5, 2)
    weights = {name: value.numpy() for name, value in module.state_dict().items() if value.is_floating_point()}
    return module, graph(BLOCK, weights | {"ratio": np.array(0.3, np.float32)})


@pytest.mark.parametrize("training", [False, True])
def test_training_steps_of_a_rebuilt_network_are_those_of_the_users_module(training: bool) -> None:
    module, model = block()
    network = network_of(model)
    batch = torch.from_numpy(random(4, 3, 8, 8))
    for net in (module, network):
        net.train(training)
        optimiser = torch.optim.SGD(net.parameters(), 0.1)
        for step in range(3):
            torch.manual_seed(step)  # dropout draws the same numbers
            optimiser.zero_grad()
            net(batch).square().sum().backward()
            optimiser.step()
    state = network.state_dict()

    assert set(state) - {"ratio"} == set(module.state_dict())
    for name, value in module.state_dict().items():
        assert torch.allclose(state[name], value, rtol=1e-4, atol=1e-6), name


def test_trained_values_go_back_into_the_graph() -> None:
    _, model = block()
    network = network_of(model).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    network(torch.from_numpy(random(4, 3, 8, 8)))
    image = random(1, 3, 8, 8)

    trained = write_back(network, model)

    assert difference(by_reference(trained, image), by_torch(network.eval(), image)) < 1e-5
    assert [tensor.name for tensor in trained.graph.initializer] == [tensor.name for tensor in model.graph.initializer]


def test_values_of_another_width_are_not_written_back() -> None:
    _, model = block()
    network = network_of(model)
    network.head.weight = nn.Parameter(torch.zeros(4, 6))

    with pytest.raises(WeightsError, match=r"'head\.weight' is \(5, 6\) in the graph and \(4, 6\) in the network"):
        write_back(network, model)
    with pytest.raises(WeightsError, match=r"the weights have no tensor"):
        write_back({}, model)


def test_hooks_of_the_layers_are_called() -> None:
    _, model = block()
    network = network_of(model)
    seen: list[str] = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.Dropout):
            layer.register_forward_hook(lambda *_, name=name: seen.append(name))

    network(torch.zeros(2, 3, 8, 8))

    assert seen[:3] == ["stem", "norm", "inner"]
    assert seen[-1] == "head"
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = Bernoulli (x)", r"\(Bernoulli\) has no counterpart"),
        ("y = com.acme.Relu (x)", r"\(com\.acme\.Relu\) has no counterpart"),
        ("y = Cast <to=8> (x)", r"\(Cast\): the element type 8 cannot be rebuilt"),
        (
            "y = If <then_branch = g1 () => (float z) { z = Constant <value_float=1.0> () }, else_branch = g2 () => (float z) { z = Constant <value_float=1.0> () }> (x)",
            r"\(If\): control flow",
        ),
        ('y = Resize <coordinate_transformation_mode="tf_crop_and_resize"> (x, x, x)', "tf_crop_and_resize"),
        ("y, z = LSTM <hidden_size=2> (x, x, x, x, x)", "sequence_lens"),
        ("y, z = MaxPool <kernel_shape=[2,2], storage_order=1> (x)", "storage_order"),
    ],
)
def test_what_torch_cannot_express_is_refused_in_one_line(node: str, reason: str) -> None:
    text = f'<ir_version: 9, opset_import: ["" : 18, "com.acme" : 1]> net (float[1,2,4,4] x) => (float[A] y) {{ {node} }}'

    with pytest.raises(TraceError, match=reason) as refusal:
        network_of(onnx.parser.parse_model(text))

    assert "\n" not in str(refusal.value)


def test_a_graph_older_than_opset_7_is_refused() -> None:
    with pytest.raises(TraceError, match="opset 6"):
        rebuilt("(float[2] x) => (float[2] y) { y = Relu (x) }", opset=6)
