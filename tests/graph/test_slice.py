"""Slicing, held against everything else that can say what the answer should be."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.nets import EXAMPLE, ZOO, Unfolded, Unsliceable, build
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline.graph.proof import Disagreement, prove_shrink, prove_slice, random_kept
from torch import nn

from models.resnet import resnet20
from pipeline.core.onnx_outputs import largest_difference, run_onnx
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan, PruneSpace
from pipeline.graph.analyse import analyse, mask
from pipeline.graph.export import export, stripped
from pipeline.graph.importance import Ranking
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.shrink import all_channels, shrink
from pipeline.graph.slice import SliceableGraph, prepare
from pipeline.graph.structure import structure

pytestmark = pytest.mark.starts_first

CLOSE = 1e-5


@cache
def prepared(name: str) -> tuple[nn.Module, PruneSpace, SliceableGraph, onnx.ModelProto]:
    module = build(ZOO[name])
    space = analyse(module, EXAMPLE)
    base = export(module, EXAMPLE, opset=18, ir_version=9)
    shapes = {tensor: tuple(values.shape) for tensor, values in module.state_dict().items()}
    return module, space, prepare(base, space, shapes, ir_version=9), base


def answer(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(EXAMPLE).numpy()


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_a_sliced_graph_answers_like_the_shrunk_network(name: str, seed: int) -> None:
    """random channels of every group, down to one"""
    module, space, graph, _ = prepared(name)
    kept = random_kept(space, seed)
    model = graph.slice(kept)
    onnx.checker.check_model(model, full_check=True)

    assert largest_difference(answer(shrink(module, space, kept)), run_onnx(model.SerializeToString(), EXAMPLE.numpy())) < CLOSE


@pytest.mark.parametrize("name", ZOO)
def test_the_shrunk_network_answers_like_torch_prunings_own(name: str) -> None:
    module, space, _, _ = prepared(name)

    assert max(prove_shrink(module, space, EXAMPLE, seed) for seed in range(3)) < CLOSE


@pytest.mark.parametrize("name", [name for name in ZOO if name not in ("layer-norm", "convnext")])
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_a_removed_channel_is_a_channel_that_nobody_hears(name: str, seed: int) -> None:
    """the whole network with deaf listeners, which knows nothing of how slicing works"""
    module, space, graph, _ = prepared(name)
    kept = random_kept(space, seed)

    assert (
        largest_difference(answer(mask(module, space, kept)), run_onnx(graph.slice(kept).SerializeToString(), EXAMPLE.numpy()))
        < CLOSE
    )


@pytest.mark.parametrize("name", ZOO)
def test_keeping_everything_gives_the_graph_that_was_exported(name: str) -> None:
    _, space, graph, base = prepared(name)
    whole = graph.slice(all_channels(space))

    assert structure(whole) == structure(stripped(base, 9))
    assert (
        largest_difference(
            run_onnx(base.SerializeToString(), EXAMPLE.numpy()), run_onnx(whole.SerializeToString(), EXAMPLE.numpy())
        )
        < 1e-6
    )


@pytest.mark.parametrize("name", ZOO)
def test_a_slice_has_the_structure_of_the_shrunk_networks_own_export(name: str) -> None:
    module, space, graph, _ = prepared(name)
    kept = random_kept(space, 5)
    exported = export(shrink(module, space, kept), EXAMPLE, opset=18, ir_version=9)

    assert structure(graph.slice(kept)) == structure(stripped(exported, 9))


@pytest.mark.parametrize("name", ZOO)
def test_slicing_leaves_its_inputs_as_they_were(name: str) -> None:
    module, space, graph, base = prepared(name)
    before = base.SerializeToString(deterministic=True), answer(module)
    first = graph.slice(random_kept(space, 1)).SerializeToString(deterministic=True)
    graph.slice(random_kept(space, 2))

    assert graph.slice(random_kept(space, 1)).SerializeToString(deterministic=True) == first
    assert base.SerializeToString(deterministic=True) == before[0]
    np.testing.assert_array_equal(answer(module), before[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ZOO)
def test_every_layer_in_the_file_has_the_widths_of_the_shrunk_network(name: str, seed: int) -> None:
    """weights and `group` attributes; the weight of a linear layer inside the network is turned round and has no name"""
    module, space, graph, _ = prepared(name)
    kept = random_kept(space, seed)
    model = graph.slice(kept)
    layers = {
        f"{layer}.weight": inner
        for layer, inner in shrink(module, space, kept).named_modules()
        if isinstance(inner, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    }
    widths = {weight: tuple(inner.weight.shape) for weight, inner in layers.items()}
    tensors = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    turned = [tensors[node.input[1]][::-1] for node in model.graph.node if node.op_type == "MatMul"]
    groups = {node.input[1]: _group(node) for node in model.graph.node if "Conv" in node.op_type}

    assert {weight: tensors[weight] for weight in widths if weight in tensors} == {w: widths[w] for w in widths if w in tensors}
    assert sorted(turned) == sorted(widths[weight] for weight in widths if weight not in tensors)
    assert groups == {weight: inner.groups for weight, inner in layers.items() if not isinstance(inner, nn.Linear)}


@pytest.mark.parametrize("name", ZOO)
def test_the_file_holds_no_weight_twice_and_none_that_is_unused(name: str) -> None:
    _, space, graph, _ = prepared(name)
    model = graph.slice(random_kept(space, 3))
    names = [tensor.name for tensor in model.graph.initializer]

    assert len(names) == len(set(names))
    assert set(names) <= {name for node in model.graph.node for name in node.input}


def _group(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def test_equal_weights_that_the_exporter_stores_once_are_cut_apart() -> None:
    """two BatchNorms with the same numbers share one initializer, and keep unlike channels"""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Unfolded(), Unfolded()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.first(x) + self.second(x)

    module = build(Twice)
    module.second.norm.load_state_dict(module.first.norm.state_dict())
    space = analyse(module, EXAMPLE)
    shapes = {tensor: tuple(values.shape) for tensor, values in module.state_dict().items()}
    graph = prepare(export(module, EXAMPLE, 18, 9), space, shapes, 9)

    assert max(prove_slice(module, graph, EXAMPLE, seed) for seed in range(5)) < CLOSE


def drafts_of(module: nn.Module, folder: Path, example: torch.Tensor = EXAMPLE) -> PrunedModelBuilder:
    return start_builder(module, example, FileFormat(18, 9), Ranking(), folder / "dense.onnx")


def test_a_network_that_cannot_be_sliced_is_exported_instead_and_says_so(tmp_path: Path) -> None:
    """an Expand in the graph repeats the dense network's width"""
    module = build(Unsliceable)
    builder = drafts_of(module, tmp_path)
    pruned = builder.make(ChannelPlan.of({"a.0": 3, "b.0": 4}))

    assert builder.sliceable is None
    assert "not proven" in builder.proof
    assert largest_difference(pruned.answer, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE


def test_a_network_that_is_sliced_says_what_was_compared(tmp_path: Path) -> None:
    builder = drafts_of(build(ZOO["chain"]), tmp_path)

    assert builder.sliceable is not None
    assert builder.proof.startswith("3 random plans sliced in ONNX and pruned in torch")


def test_a_resnet_with_option_a_shortcuts_is_sliced_in_blocks_and_streams(tmp_path: Path) -> None:
    """each block has channels of its own; each stage has those that its shortcuts carry"""
    builder = drafts_of(build(resnet20), tmp_path)
    blocks = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    streams = {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    pruned = builder.make(ChannelPlan.of(dict.fromkeys(blocks, 3) | dict(zip(sorted(streams), (5, 7, 9), strict=True))))

    assert {group.name for group in builder.space.groups} == blocks | streams
    assert builder.sliceable is not None
    assert largest_difference(pruned.answer, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE


def test_a_wrong_slice_is_a_disagreement() -> None:
    """the weights of another network under the same names"""
    module, _, graph, _ = prepared("chain")
    other = build(ZOO["chain"], seed=7)

    assert prove_slice(module, graph, EXAMPLE, 0) < CLOSE
    with pytest.raises(Disagreement, match="off by"):
        prove_slice(other, graph, EXAMPLE, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "vgg16_bn", "efficientnet_b0", "densenet121", "mobilenet_v3_small", "googlenet", "mnasnet1_0", "squeezenet1_1", "regnet_x_400mf", "resnext50_32x4d", "inception_v3"],
)  # fmt: skip
def test_torchvisions_networks_are_sliced(name: str, tmp_path: Path) -> None:
    import torchvision

    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = build(lambda: torchvision.models.get_model(name, weights=None, **quiet))
    size = 299 if name == "inception_v3" else 224
    builder = drafts_of(module, tmp_path, torch.randn(1, 3, size, size))

    assert builder.sliceable is not None, builder.proof


@pytest.mark.slow
def test_convnext_is_exported_instead(tmp_path: Path) -> None:
    """its exported graph ends in a Gather with the dense network's indices"""
    import torchvision

    module = build(lambda: torchvision.models.convnext_tiny(weights=None))
    builder = drafts_of(module, tmp_path, torch.randn(1, 3, 64, 64))

    assert builder.sliceable is None
    assert "not proven" in builder.proof
