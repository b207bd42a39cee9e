"""What the layers of a network hold and compute, and where a runtime's times belong."""

from pathlib import Path

import onnx
import pytest
from helpers.families import FAMILIES
from helpers.graphs import conv_net, graph, reference
from helpers.nets import EXAMPLE, ZOO, build, exported
from helpers.profiles import here

from pipeline.core.measurement import Failure
from pipeline.core.node_times import NodeTime
from pipeline.core.profile import load_profile
from pipeline.graph.analyse import analyse
from pipeline.graph.counts import macs, params
from pipeline.graph.labels.space import name_nodes
from pipeline.graph.layer_facts import LayerFacts, layer_facts, times_by_layer
from pipeline.probe.local import LocalProbe


def facts(net: str) -> tuple[onnx.ModelProto, tuple[LayerFacts, ...]]:
    deployed = analyse(build(ZOO[net]), EXAMPLE, onnx.load_model_from_string(exported(net))).deployed
    model = deployed.slice({})
    return model, layer_facts(model, deployed.labelled)


@pytest.mark.parametrize("net", ["chain", "residual", "depthwise", "grouped", "flatten", "squeeze-excite", "transposed"])
def test_the_layers_have_all_parameters_and_operations_of_the_network(net: str) -> None:
    model, layers = facts(net)

    assert sum(layer.macs for layer in layers) == macs(model)
    assert sum(layer.params for layer in layers) == params(model)


def test_layers_that_are_pruned_together_name_the_same_group() -> None:
    _, layers = facts("residual")

    assert {layer.name: layer.groups for layer in layers} == {
        "stem.0": ("stem.0",),
        "inner.0": ("inner.0",),
        "outer.0": ("stem.0",),
        "head": (),
    }
    assert [layer.reason for layer in layers if not layer.groups] == ["its channels are the network's output"]


def test_a_product_of_two_activations_is_named_by_its_module_where_that_is_known() -> None:
    """query times key, and the weights of attention times values"""
    network = analyse(*FAMILIES["vit-separate"]())
    model, labelled = network.deployed.slice({}), network.deployed.labelled
    known, unknown = (layer_facts(model, labelled, places) for places in (network.places, {"node": "'node' (MatMul)"}))
    products = [number for number, layer in enumerate(known) if not layer.params]

    assert len(products) >= 2
    assert all("MatMul in 'blocks." in known[number].title for number in products)
    assert [unknown[number].title for number in products] == [known[number].name for number in products]
    assert all(layer.title == layer.name for layer in known if layer.params)


def test_the_kind_of_a_layer_tells_its_kernel_and_its_groups() -> None:
    kinds = {layer.name: (layer.kind, layer.outputs) for net in ("depthwise", "grouped") for layer in facts(net)[1]}

    assert kinds["filter.0"] == ("Conv 3x3 depthwise", (8, 8, 8))
    assert kinds["b.0"] == ("Conv 3x3 in 4 groups", (12, 8, 8))
    assert kinds["project"] == ("Conv 1x1", (6, 8, 8))
    assert kinds["head"] == ("Gemm", (5,))


def test_the_time_of_a_fused_node_goes_to_the_layer_in_it() -> None:
    """ONNX Runtime names a node after itself, after the value that it computes, or after one that it was fused with."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18]> net (float[1,3,4,4] x) => (float[1,2] y) {
        [first] a = Conv (x, w1)  b = Relu (a)
        [second] c = Conv (b, w2)  d = Add (c, b)  e = Relu (d)
        m = GlobalAveragePool (e)  f = Flatten (m)
        [third] y = Gemm (f, w3)
    }""")
    for name in ("w1", "w2", "w3"):
        model.graph.initializer.add(name=name, dims=[1], data_type=onnx.TensorProto.FLOAT)
    layers = [LayerFacts(name, "", (), 0, 0) for name in ("w1", "w2", "w3")]
    times = [
        NodeTime("b_nchwc", "Conv", 1.0),
        NodeTime("e_nchwc", "Conv", 2.0),
        NodeTime("fused third", "FusedGemm", 4.0),
        NodeTime("ReorderInput_token_3", "ReorderInput", 0.25),
        NodeTime("m_nchwc", "GlobalAveragePool", 0.5),
    ]
    timed, others = times_by_layer(layers, times, model)

    assert [layer.latency_ms for layer in timed] == [1.0, 2.0, 4.0]
    assert others == {"GlobalAveragePool": 0.5, "ReorderInput": 0.25}


def test_every_node_of_a_file_is_timed(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(conv_net())
    name_nodes(model)
    probe = LocalProbe(load_profile(here(tmp_path, {"graph_optimization": "disabled"})), reference())
    found = probe.node_times(graph(model.SerializeToString()), runs=2)
    probe.close()

    assert not isinstance(found, Failure)
    assert {node.name: node.operator for node in found} == {node.name: node.op_type for node in model.graph.node}
    assert {node.provider for node in found} == {"CPUExecutionProvider"}
