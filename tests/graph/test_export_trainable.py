"""Trainable graphs: everything that training needs is there, and each weight is an initializer."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from helpers.nets import EXAMPLE, ZOO, Careful, build, conv
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from pipeline.core.onnx_outputs import TOLERANCE, all_outputs, largest_difference
from pipeline.errors import TraceError
from pipeline.graph.export import export_trainable, exporter_of
from pipeline.graph.exporters import EXPORTERS, TRAINABLE_EXPORTERS
from pipeline.graph.metadata import constants_of

CAPTURED, TRACED = EXPORTERS


def initializers(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def computed_from_weights(model: onnx.ModelProto) -> list[str]:
    """The kinds of nodes that read nothing but initializers."""
    known = set(initializers(model))
    return [node.op_type for node in model.graph.node if set(node.input) <= known]


class Trained(nn.Module):
    """x -> conv(8) -> BatchNorm -> ReLU -> dropout of channels -> mean -> linear(6) -> BatchNorm -> dropout -> linear(5)"""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop, self.hidden, self.norm = conv(3, 8), nn.Dropout2d(0.25), nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(self.drop(self.a(x)).mean((2, 3)))
        return self.head(F.dropout(self.norm(x), 0.5, self.training))


@pytest.mark.parametrize("exporter", TRAINABLE_EXPORTERS)
def test_batchnorm_and_dropout_stay_and_every_tensor_has_its_name_and_values(exporter: str) -> None:
    """all BatchNorm statistics of the last norm are 0 and 1, and so equal to its weights"""
    module = build(Trained)
    model = TRAINABLE_EXPORTERS[exporter](module, EXAMPLE, 18)
    tensors = {name: value.numpy() for name, value in module.state_dict().items() if value.dim()}
    tensors["hidden.weight_T"] = tensors["hidden.weight"].T
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    ratios = [float(found[node.input[1]]) for node in model.graph.node if node.op_type == "Dropout"]

    assert kinds(model) & Counter(["BatchNormalization", "BatchNormalization", "Dropout", "Dropout", "Identity"]) == {
        "BatchNormalization": 2,
        "Dropout": 2,
    }
    assert ratios == [0.25, 0.5]
    assert [
        name for name in set(tensors) - {"hidden.weight", "hidden.weight_T"} if not np.array_equal(tensors[name], found[name])
    ] == []
    assert any(np.array_equal(tensors[name], found.get(name)) for name in ("hidden.weight", "hidden.weight_T"))


class Computed(nn.Module):
    """x -> conv with weight norm -> conv with spectral norm -> FrozenBatchNorm -> conv with standardised weights -> attention with
    separate queries and a table of relative positions -> linear(5)"""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.weight_norm(nn.Conv2d(3, 8, 3, stride=2))
        self.b = parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))
        self.c = nn.Conv2d(8, 8, 1)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(8) + 0.5)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)
        self.table = nn.Parameter(torch.randn(5, 2))
        self.register_buffer("index", torch.randint(5, (9, 9)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        x = x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]
        mean, deviation = self.c.weight.mean((1, 2, 3), keepdim=True), self.c.weight.std((1, 2, 3), keepdim=True)
        x = F.conv2d(x, (self.c.weight - mean) / deviation, self.c.bias).flatten(2).mT
        x, _ = self.attention(x.relu(), x, x, need_weights=False, attn_mask=self.table[self.index].permute(2, 0, 1))
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def computed() -> onnx.ModelProto:
    return export_trainable(build(Computed), EXAMPLE, 18, 9)


def test_what_is_computed_from_weights_alone_is_an_initializer(computed: onnx.ModelProto) -> None:
    shapes = initializers(computed)
    layers = [node for node in computed.graph.node if node.op_type in ("Conv", "Gemm")]

    assert computed_from_weights(computed) == []
    assert [shapes[node.input[1]] for node in layers] == [(8, 3, 3, 3), (8, 8, 1, 1), (8, 8, 1, 1), (8, 8), (5, 8)]


def test_computed_weights_are_named_after_their_layers(computed: onnx.ModelProto) -> None:
    """c.weight is a tensor of the network, so its standardised form has another name"""
    names = set(initializers(computed))

    assert {"a.weight", "b.weight", "c.weight_folded", "head.weight"} <= names
    assert "c.weight" not in names


def test_what_no_parameter_contributes_to_is_a_constant(computed: onnx.ModelProto) -> None:
    """the frozen scale and shift of 8 channels; not the table of relative positions"""
    constants = constants_of(computed) or frozenset()
    large = sorted(shape for name, shape in initializers(computed).items() if name in constants and np.prod(shape) > 1)

    assert large == [(8, 1, 1), (8, 1, 1)]


def test_running_statistics_are_constants_and_weights_are_not() -> None:
    model = export_trainable(build(Trained), EXAMPLE, 18, 9)
    constants = constants_of(model) or frozenset()

    assert {"a.1.running_mean", "a.1.running_var", "norm.running_mean", "norm.running_var"} <= constants
    assert not constants & {name for name, _ in build(Trained).named_parameters()}


def test_a_small_constant_that_is_expanded_to_a_large_one_is_not_stored_large() -> None:
    """8 numbers, expanded to 4 million"""

    class Expanding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(8, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sin(self.scale.expand(8, 1024, 512)).amax((1, 2))[:, None, None]

    model = export_trainable(Expanding(), torch.randn(1, 8, 2, 2), 18, 9)

    assert model.ByteSize() < 10_000


def test_a_network_with_several_inputs_and_outputs_names_and_answers_them_in_order() -> None:
    class Several(nn.Module):
        def forward(self, x: Tensor, y: Tensor, z: Tensor) -> dict[str, tuple[Tensor, Tensor] | Tensor]:
            output_1 = x - y
            return {"first": (output_1, y * z), "second": torch.cat([x, z])}

    example = tuple(torch.randn(1, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    model = export_trainable(Several(), example, 18, 9)
    x, y, z = (tensor.numpy() for tensor in example)

    assert [value.name for value in model.graph.input] == ["input", "input_1", "input_2"]
    assert [value.name for value in model.graph.output] == ["output", "output_1", "output_2"]
    for found, expected in zip(
        all_outputs(model.SerializeToString(), [x, y, z]), (x - y, y * z, np.concatenate([x, z])), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["chain", "transposed", "unfolded", "convnext"])
def test_the_graph_answers_like_the_network_with_the_opset_asked_for(name: str) -> None:
    module = build(ZOO[name])
    model = export_trainable(module, EXAMPLE, 20, 9)
    onnx.checker.check_model(model, full_check=True)
    with torch.no_grad():
        expected = module(EXAMPLE).numpy()

    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert largest_difference(expected, all_outputs(model.SerializeToString(), [EXAMPLE.numpy()])[0]) < TOLERANCE


def test_the_other_exporter_is_used_where_the_first_is_wrong() -> None:
    model = export_trainable(build(Careful), EXAMPLE, 18, 9)

    assert exporter_of(model) == TRACED
    assert {entry.key for entry in model.metadata_props} == {"edge_compress.constants", "edge_compress.exporter"}
    assert kinds(model)["BatchNormalization"] == 2


def test_a_network_that_cannot_be_exported_is_refused_with_the_reason() -> None:
    class Bessel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(TraceError, match=r"DispatchError: No ONNX function found for .*bessel_j0"):
        export_trainable(Bessel(), EXAMPLE, 18, 9)


@pytest.mark.parametrize("exporter", TRAINABLE_EXPORTERS)
def test_weights_of_zeros_or_ones_make_the_same_graph(exporter: str) -> None:
    def outline(module: nn.Module) -> tuple[Counter[str], dict[str, tuple[int, ...]]]:
        model = TRAINABLE_EXPORTERS[exporter](module.eval(), EXAMPLE, 18)
        return kinds(model), initializers(model)

    trained, equal = build(Trained), Trained()
    with torch.no_grad():
        for tensor in (*equal.parameters(), *equal.buffers()):
            tensor.fill_(1)

    assert outline(equal) == outline(trained)
