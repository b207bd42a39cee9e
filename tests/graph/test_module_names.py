"""Names of modules: a reason names the module of the user's network, whatever exporter made the graph."""

import onnx
import pytest
import torch
from helpers.families import FAMILIES
from helpers.onnx_text import graph
from torch import Tensor, nn

from pipeline.graph.analyse import analyse
from pipeline.graph.exporters import Exporter, captured_trainable, traced_trainable
from pipeline.graph.module_names import innermost, note_scopes, places_of, scopes_of


def module_of(node: onnx.NodeProto) -> str:
    return innermost(scopes_of(node) or "[]")


@pytest.mark.parametrize(
    ("name", "exporter"),
    [("unet", captured_trainable), ("unet", traced_trainable), ("c2f-split", traced_trainable), ("inception", traced_trainable)],
)
def test_each_convolution_is_said_to_be_in_the_module_that_has_its_weight(name: str, exporter: Exporter) -> None:
    """containers in containers, lists of modules, and modules that are called by others"""
    module, example = FAMILIES[name]()
    model = exporter(module, example, 18)
    found = {node.input[1]: module_of(node) for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")}
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)

    assert found == {f"{path}.weight": path for path, layer in module.named_modules() if isinstance(layer, convolutions)}


class Sorter(nn.Module):
    """x -> sorted along the channels"""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1).values


class Sorts(nn.Module):
    """conv a -> conv b -> sorted in the module `inner` or in the network's own forward -> conv(5)"""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        answer: Tensor = self.out(self.inner(x) if self.inner else x.sort(1).values)
        return answer


@pytest.mark.parametrize(
    ("inner", "place"),
    [(nn.Sequential(Sorter()), "TopK in 'inner.0'"), (None, "TopK in the network's own forward()")],
    ids=["module", "network"],
)
def test_a_reason_names_the_module_in_which_the_channels_are_mixed(inner: nn.Module | None, place: str) -> None:
    found = analyse(Sorts(inner).eval(), torch.randn(1, 3, 8, 8)).space.frozen

    assert {layer.name: layer.reason for layer in found}["b"] == f"{place} mixes its channels"


def test_a_recurrent_layer_is_named_by_its_module_and_not_by_a_value_of_the_graph() -> None:
    """the exporter reorders the weights of a GRU, so they are no tensors of the network"""
    found = analyse(*FAMILIES["cnn-gru"]()).space.frozen

    assert {layer.name: layer.reason for layer in found}["recurrent"] == "the units of GRU in 'recurrent' keep their number"


def test_a_node_that_an_optimiser_made_is_described_by_the_module_whose_result_it_reads() -> None:
    module, example = FAMILIES["shufflenet-v2"]()
    model = captured_trainable(module, example, 18)
    split = next(node for node in model.graph.node if node.op_type == "Split")

    assert scopes_of(split) is None
    assert places_of(model)[split.name] == "Split after 'body.1'"


def test_a_node_of_a_graph_without_notes_is_described_by_its_own_name() -> None:
    model = graph("(float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    model.graph.node[0].name = "/head/Relu"

    assert places_of(model) == {"/head/Relu": "'/head/Relu' (Relu)"}


def test_a_name_that_leads_to_no_module_is_not_noted() -> None:
    model = graph("(float[1,3] x) => (float[1,3] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    for node, name in zip(model.graph.node, ("/head/Relu", "/tail/Relu", "Relu"), strict=True):
        node.name = name
    note_scopes(model, {"", "head"})

    assert [scopes_of(node) for node in model.graph.node] == ["['', 'head', 'Relu']", None, None]
