"""Grouped convolutions and GroupNorm lose whole groups: their number of groups falls, and the network answers as before."""

import copy
import json
from pathlib import Path

import onnx
import pytest
import torch
from helpers.families_conv import Bottleneck, GroupedBlock, Pooled, cbr
from helpers.nets import build
from helpers.onnx_text import graph
from torch import nn

from pipeline.core.onnx_outputs import largest_difference, run_onnx
from pipeline.core.plan import ChannelPlan, Kept
from pipeline.graph.analyse import analyse
from pipeline.graph.labels.space import label_graph
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.prove import prove_groups
from pipeline.graph.prunable_network import PrunableNetwork, random_kept, rebuild_from_graph
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import layer_groups_of, rebuild, shrink
from pipeline.graph.slice import prepare
from pipeline.packaging.pack import load_compressed, plan_json, weights_bytes

C = "float[1,3,8,8] x"
HEAD = "p = GlobalAveragePool(h) f = Flatten(p) y = Gemm<transB = 1>(f, head)"
EXAMPLE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def proven(model: onnx.ModelProto, grouped: Grouped) -> dict[str, int]:
    """Group -> number of channels. Each sliced graph has the output of the silenced one."""
    found = prove_groups(model, label_graph(model, grouped))
    assert not found.refused
    return {group.name: group.channels for group in found.groups}


def numbers_of_groups(model: onnx.ModelProto, key: str, kept: Kept) -> list[int]:
    sliced = prepare(model, label_graph(model, "whole")).slice(kept)
    return [entry.i for node in sliced.graph.node for entry in node.attribute if entry.name == key]


def test_a_grouped_convolution_loses_whole_groups_or_the_same_channels_of_each() -> None:
    model = graph(
        f"({C}) => ({'float[1,5] y'}) {{ s = Conv(x, a) h = Conv<group = 3>(s, b, c) {HEAD} }}",
        a=(12, 3, 1, 1),
        b=(6, 4, 1, 1),
        c=(6,),
        head=(5, 6),
    )

    assert proven(model, "evenly") == {"a": 4, "b": 2}
    assert proven(model, "whole") == {"a": 3}
    assert numbers_of_groups(model, "group", {"a": (0, 2)}) == [2]
    assert numbers_of_groups(model, "group", {"a": (1,)}) == [1]


def test_a_transposed_convolution_loses_whole_groups() -> None:
    model = graph(
        f"({C}) => (float[1,5] y) {{ s = Conv(x, a) h = ConvTranspose<group = 3>(s, b) {HEAD} }}",
        a=(12, 3, 1, 1),
        b=(12, 2, 2, 2),
        head=(5, 6),
    )

    assert proven(model, "whole") == {"a": 3}
    assert numbers_of_groups(model, "group", {"a": (0, 2)}) == [2]


@pytest.mark.parametrize("opset", [18, 21])
def test_a_group_normalisation_loses_whole_groups(opset: int) -> None:
    """scale and bias have one number for each group before opset 21, and one for each channel since"""
    model = graph(
        f"({C}) => (float[1,5] y) {{ s = Conv(x, a) h = GroupNormalization<num_groups = 4>(s, m, n) {HEAD} }}",
        opset,
        a=(12, 3, 1, 1),
        m=(4 if opset < 21 else 12,),
        n=(4 if opset < 21 else 12,),
        head=(5, 12),
    )

    assert proven(model, "whole") == {"a": 4}
    assert numbers_of_groups(model, "num_groups", {"a": (0, 1, 3)}) == [3]


def test_a_group_normalisation_that_is_exported_as_an_instance_normalisation_loses_whole_groups() -> None:
    text = "s = Conv(x, a) r = Reshape(s, groups) n = InstanceNormalization(r, one, zero) h = Reshape(n, back)"
    model = graph(
        f"({C}) => (float[1,5] y) {{ {text} {HEAD} }}",
        a=(12, 3, 1, 1),
        one=(3,),
        zero=(3,),
        head=(5, 12),
        groups=[1, 3, 256],
        back=[1, 12, 8, 8],
    )

    assert proven(model, "evenly") == {"a": 4}
    assert proven(model, "whole") == {"a": 3}


def test_groups_that_read_the_image_stay() -> None:
    model = graph(f"({C}) => (float[1,5] y) {{ h = Conv<group = 3>(x, a) {HEAD} }}", a=(6, 1, 1, 1), head=(5, 6))

    assert label_graph(model, "whole").space.groups == ()


class Shuffled(Pooled):
    """stem -> 1x1 in 4 groups -> shuffle -> 3x3, as in ShuffleNet; the next layer reads all groups"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 16), cbr(16, 32, 1, groups=4), nn.ChannelShuffle(4), cbr(32, 8), width=8)


class Normalised(Pooled):
    """conv -> GroupNorm of 3 groups -> 3x3 in 2 groups -> GroupNorm of 2 groups"""

    def __init__(self) -> None:
        first = nn.Sequential(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 16, 1), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(16, 16, 3, groups=2), nn.GroupNorm(2, 16), nn.ReLU())
        super().__init__(first, second, width=16)


class Next(Pooled):
    """stem -> bottleneck whose 3x3 convolution has 4 groups"""

    def __init__(self) -> None:
        super().__init__(cbr(3, 8), GroupedBlock(8, 12), width=12)


NETS = {"resnext": Next, "shuffle": Shuffled, "group norm": Normalised, "bottleneck": Bottleneck}


@pytest.fixture(scope="module", params=NETS)
def network(request: pytest.FixtureRequest) -> PrunableNetwork:
    module = build(NETS[request.param])
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return analyse(module, EXAMPLE, settings=PruningSettings(grouped="whole"))


def test_the_module_loses_groups_and_answers_like_its_slice(network: PrunableNetwork) -> None:
    dense = layer_groups_of(network.module)
    left = []
    for seed in range(3):
        kept = random_kept(network.space, seed)
        small = shrink(network.module, network.space, kept).eval()
        left.append(layer_groups_of(small))
        found = run_onnx(network.deployed.slice(kept).SerializeToString(), EXAMPLE.numpy())
        assert largest_difference(small(EXAMPLE).detach().numpy(), found) < 1e-4
    assert any(groups != dense for groups in left)


@pytest.mark.parametrize(("name", "origin"), [("resnext", "own"), ("shuffle", "rebuilt")])
def test_the_users_own_module_is_kept_unless_its_code_repeats_the_number_of_groups(name: str, origin: str) -> None:
    assert analyse(build(NETS[name]), EXAMPLE, settings=PruningSettings(grouped="whole")).origin == origin


def test_the_rebuilt_module_loses_groups_and_answers_like_the_slice(network: PrunableNetwork) -> None:
    rebuilt = rebuild_from_graph(network, EXAMPLE, "asked for")
    kept = random_kept(rebuilt.space, 1)
    small = shrink(rebuilt.module, rebuilt.space, kept).eval()
    found = run_onnx(rebuilt.deployed.slice(kept).SerializeToString(), EXAMPLE.numpy())

    assert largest_difference(small(EXAMPLE).detach().numpy(), found) < 1e-4


def test_an_artifact_says_how_many_groups_are_left() -> None:
    """the shapes of weights do not: half of the groups, or half of the outputs of each group"""
    module = build(Next)
    network = analyse(module, EXAMPLE, settings=PruningSettings(grouped="whole"))
    kept = {group.name: tuple(range(max(1, group.channels // 2))) for group in network.space.groups}
    plan = ChannelPlan(tuple((name, len(channels)) for name, channels in kept.items()))
    small = shrink(module, network.space, kept).eval()
    facts = json.loads(plan_json(("net", None), plan, kept, "own", layer_groups_of(small)))

    assert facts["layer_groups"] == {"body.1.b.0": 2}


def test_an_artifact_with_fewer_groups_is_loaded(tmp_path: Path) -> None:
    module = build(Next)
    network = analyse(module, EXAMPLE, settings=PruningSettings(grouped="whole"))
    kept = {group.name: tuple(range(max(1, group.channels // 2))) for group in network.space.groups}
    plan = ChannelPlan(tuple((name, len(channels)) for name, channels in kept.items()))
    small = shrink(module, network.space, kept).eval()
    (tmp_path / "weights.safetensors").write_bytes(weights_bytes(small))
    (tmp_path / "plan.json").write_bytes(plan_json(("net", None), plan, kept, "own", layer_groups_of(small)))

    assert torch.equal(load_compressed(build(Next, seed=1), tmp_path)(EXAMPLE), small(EXAMPLE))


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1, groups=2)], ids=["norm", "convolution"])
@pytest.mark.parametrize("known", ["said", "left out"])
def test_a_layer_of_which_one_group_is_left_is_loaded(layer: nn.Module, known: str) -> None:
    """conv -> layer with two groups -> conv, of which the last two channels leave. Older artifacts do not list the layer."""
    other = nn.Conv2d(2, 2, 1, groups=2)
    dense = nn.Sequential(nn.Conv2d(2, 4, 1), copy.deepcopy(layer), nn.Conv2d(4, 2, 1), other)
    half = nn.GroupNorm(1, 2) if isinstance(layer, nn.GroupNorm) else nn.Conv2d(2, 2, 1)
    small = nn.Sequential(nn.Conv2d(2, 2, 1), half, nn.Conv2d(2, 2, 1), copy.deepcopy(other))
    groups = layer_groups_of(small, dense if known == "said" else None)
    image = torch.randn(1, 2, 3, 3)

    assert groups == ({"1": 1, "3": 2} if known == "said" else {"3": 2})
    assert torch.equal(rebuild(dense, small.state_dict(), groups)(image), small(image))
