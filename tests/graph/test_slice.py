"""Slicing, held against everything else that can say what the answer should be."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.analysed import analysed, builder_of
from helpers.nets import EXAMPLE, ZOO, Unfolded, Unsliceable, build
from helpers.witness import pruned_by_torch_pruning
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.resnet import resnet20
from pipeline.core.onnx_outputs import largest_difference, run_onnx
from pipeline.core.opsets import FileFormat
from pipeline.core.plan import ChannelPlan, PruneSpace
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import PrunableNetwork, random_kept
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import shrink
from pipeline.graph.silence import silence
from pipeline.graph.slice import SliceableGraph
from pipeline.graph.structure import structure

pytestmark = pytest.mark.starts_first

CLOSE = 1e-5
FREER = ("padded",)
"""Networks in which torch-pruning keeps a layer whole, or couples more than there is."""


def prepared(name: str) -> tuple[nn.Module, PruneSpace, SliceableGraph, PrunableNetwork]:
    prunable = analysed(ZOO[name])
    return prunable.module, prunable.space, prunable.deployed, prunable


def answer(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return module.eval()(EXAMPLE).numpy()


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000))
def test_a_sliced_graph_answers_like_the_shrunk_network(name: str, seed: int) -> None:
    """random channels of every group, down to one"""
    module, space, graph, _ = prepared(name)
    kept = random_kept(space, seed)
    model = graph.slice(kept)
    onnx.checker.check_model(model, full_check=True)

    assert largest_difference(answer(shrink(module, space, kept)), run_onnx(model.SerializeToString(), EXAMPLE.numpy())) < CLOSE


@pytest.mark.parametrize("name", [name for name in ZOO if name not in FREER])
def test_the_shrunk_network_answers_like_torch_prunings_own(name: str) -> None:
    module, space, _, _ = prepared(name)
    for seed in range(3):
        kept = random_kept(space, seed)
        expected = answer(pruned_by_torch_pruning(module, space, kept, EXAMPLE))

        assert largest_difference(expected, answer(shrink(module, space, kept))) < CLOSE


@pytest.mark.parametrize("name", ZOO)
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000))
def test_a_removed_channel_is_a_channel_that_nobody_reads(name: str, seed: int) -> None:
    """the whole network in which the weights that read removed channels are zero"""
    _, space, graph, prunable = prepared(name)
    kept = random_kept(space, seed)
    silenced = silence(prunable.trainable.slice({}), prunable.trainable.labelled, kept)
    expected = run_onnx(silenced.SerializeToString(), EXAMPLE.numpy())

    assert largest_difference(expected, run_onnx(graph.slice(kept).SerializeToString(), EXAMPLE.numpy())) < CLOSE


@pytest.mark.parametrize("name", ZOO)
def test_keeping_everything_answers_like_the_network(name: str) -> None:
    whole = prepared(name)[2].slice({})

    assert largest_difference(answer(build(ZOO[name])), run_onnx(whole.SerializeToString(), EXAMPLE.numpy())) < CLOSE


@pytest.mark.parametrize("name", ZOO)
def test_a_slice_has_the_structure_of_the_file_with_trained_weights(name: str) -> None:
    module, space, graph, prunable = prepared(name)
    kept = random_kept(space, 5)
    small = shrink(module, space, kept)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1.1).add_(0.01)
    trained = prunable.trained(small, kept)

    assert structure(graph.slice(kept)) == structure(trained)
    assert largest_difference(answer(small), run_onnx(trained.SerializeToString(), EXAMPLE.numpy())) < CLOSE


@pytest.mark.parametrize("name", ZOO)
def test_slicing_leaves_its_inputs_as_they_were(name: str) -> None:
    module, space, graph, prunable = prepared(name)
    base = prunable.trainable.skeleton
    before = base.SerializeToString(deterministic=True), answer(module)
    first = graph.slice(random_kept(space, 1)).SerializeToString(deterministic=True)
    graph.slice(random_kept(space, 2))

    assert graph.slice(random_kept(space, 1)).SerializeToString(deterministic=True) == first
    assert base.SerializeToString(deterministic=True) == before[0]
    np.testing.assert_array_equal(answer(module), before[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ZOO)
def test_every_layer_in_the_file_has_the_widths_of_the_shrunk_network(name: str, seed: int) -> None:
    """weights and `group` attributes; the weight of a linear layer inside the network may be turned round"""
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
    groups = {node.input[1]: _group(node) for node in model.graph.node if "Conv" in node.op_type}

    assert set(widths) <= set(tensors)
    assert all(tensors[weight] in (width, width[::-1]) for weight, width in widths.items())
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
    prunable = analyse(module, EXAMPLE)
    for seed in range(5):
        kept = random_kept(prunable.space, seed)
        expected = answer(shrink(module, prunable.space, kept))

        assert prunable.origin == "own"
        found = run_onnx(prunable.deployed.slice(kept).SerializeToString(), EXAMPLE.numpy())
        assert largest_difference(expected, found) < CLOSE


def drafts_of(module: nn.Module, folder: Path, example: torch.Tensor = EXAMPLE) -> PrunedModelBuilder:
    return start_builder(module, example, FileFormat(18, 9), PruningSettings(), folder / "dense.onnx")


def test_an_expand_follows_the_widths_of_the_plan() -> None:
    """an Expand in the graph repeats the dense network's width"""
    pruned = builder_of(Unsliceable).make(ChannelPlan.of({"a.0": 3, "b.0": 4}))

    assert largest_difference(pruned.answers, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE


def test_a_network_that_is_sliced_says_what_was_compared() -> None:
    builder = builder_of(ZOO["chain"])

    assert builder.proof.startswith("3 random plans sliced in ONNX and pruned in torch")


def test_a_resnet_with_option_a_shortcuts_is_sliced_in_blocks_and_streams(tmp_path: Path) -> None:
    """each block has channels of its own; each stage has those that its shortcuts carry"""
    builder = drafts_of(build(resnet20), tmp_path)
    blocks = {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)}
    streams = {"conv1", "layer2.0.conv2", "layer3.0.conv2"}
    pruned = builder.make(ChannelPlan.of(dict.fromkeys(blocks, 3) | dict(zip(sorted(streams), (5, 7, 9), strict=True))))

    assert {group.name for group in builder.space.groups} == blocks | streams
    assert largest_difference(pruned.answers, run_onnx(pruned.data, EXAMPLE.numpy())) < CLOSE


def test_the_graph_of_another_network_is_exported_again(tmp_path: Path) -> None:
    """the file in the run directory has the same layers and other weights"""
    drafts_of(build(ZOO["chain"], seed=7), tmp_path)
    module = build(ZOO["chain"])
    builder = drafts_of(module, tmp_path)

    assert largest_difference(answer(module), run_onnx(builder.make(builder.space.dense()).data, EXAMPLE.numpy())) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "vgg16_bn", "efficientnet_b0", "densenet121", "mobilenet_v3_small", "googlenet", "mnasnet1_0", "squeezenet1_1", "regnet_x_400mf", "resnext50_32x4d", "inception_v3", "convnext_tiny", "shufflenet_v2_x0_5", "vit_b_16", "swin_t"],
)  # fmt: skip
def test_torchvisions_networks_are_sliced(name: str, tmp_path: Path) -> None:
    import torchvision

    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module = build(lambda: torchvision.models.get_model(name, weights=None, **quiet))
    size = 299 if name == "inception_v3" else 224
    builder = drafts_of(module, tmp_path, torch.randn(1, 3, size, size))

    assert "random plans sliced" in builder.proof
