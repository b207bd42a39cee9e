"""Any subset of the blocks of a small family can be dropped: sliced, answered, trained, exported again and loaded."""

import functools
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
import torch
from helpers.families import FAMILIES
from helpers.readers import artifact
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.core.plan import Kept, dropped_in
from pipeline.core.restriction import Restriction
from pipeline.errors import RunError, WeightsError
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import PrunableNetwork, random_kept
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import all_channels, layer_groups_of, shrink
from pipeline.graph.silence import silence
from pipeline.graph.structure import structure
from pipeline.graph.weight_file import assembled
from pipeline.packaging.pack import NETWORK_FILE, load_compressed, pack, plan_json, weights_bytes

DEPTH = PruningSettings(restriction=Restriction(depth=True))
WITH_BLOCKS = (
    "resnet",
    "bottleneck-group-norm",
    "res2net",
    "mobilenet-se-conv",
    "ghostnet",
    "convnext",
    "vit",
    "vit-separate",
    "multihead-attention",
    "transformer-encoder",
    "swin",
    "linear-attention",
    "xcit",
    "mobilevit",
    "mlp-mixer",
    "c2f-chunk",
    "c2f-split",
    "csp",
    "super-resolution",
    "style-transfer",
    "conv1d",
    "conv3d",
)
DEFAULT = ("resnet", "mlp-mixer", "linear-attention")
"""Families that are tried in the default tests; in the last one, the user's module cannot run without its block."""
families = pytest.mark.parametrize("name", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in WITH_BLOCKS])  # fmt: skip


@functools.cache
def analysed(name: str) -> tuple[PrunableNetwork, Tensor]:
    module, example = FAMILIES[name]()
    return analyse(module, example, settings=DEPTH), example


def run(module: nn.Module, example: Tensor) -> np.ndarray:
    with torch.no_grad():
        answer: np.ndarray = module.eval()(example).numpy()
    return answer


@st.composite
def plans(draw: st.DrawFn, network: PrunableNetwork) -> Kept:
    """Any blocks may be dropped, also inside others. Of each group, any channels stay, or all of them."""
    dropped = draw(st.sets(st.sampled_from([block.name for block in network.space.blocks])))
    seed = draw(st.none() | st.integers(0, 1000))
    channels = {} if seed is None else random_kept(replace(network.space, blocks=()), seed)
    return {**all_channels(network.space), **channels, **dict.fromkeys(dropped, ())}


def written(network: PrunableNetwork, small: nn.Module, kept: Kept, folder: Path) -> bytes:
    """Write the files of an artifact from which `load_compressed` makes the torch network, and return the ONNX file."""
    rebuilt = network.origin == "rebuilt"
    space = network.trainable.labelled.space if rebuilt else network.space
    plan = space.plan({group.name: len(kept[group.name]) for group in space.groups}, dropped_in(kept))
    groups = None if rebuilt else layer_groups_of(small, network.module)
    files = {
        "model.onnx": network.trained(small, kept).SerializeToString(),
        "weights.safetensors": weights_bytes(small),
        "plan.json": plan_json(("n.py:net", None), plan, kept, network.origin, groups, space.dropped(kept)),
    }
    if rebuilt:
        whole = {name: channels for name, channels in kept.items() if channels}
        files[NETWORK_FILE] = assembled(network.trainable.weight_slices(whole), values=False).SerializeToString()
    pack(folder, artifact(), files)
    return files["model.onnx"]


def check(name: str, kept: Kept) -> None:
    """Slice, compare, train one step, ship and load. The oracle is the whole network whose dropped branches are zero."""
    network, example = analysed(name)
    silent = run_onnx(silence(network.trainable.slice({}), network.trainable.labelled, kept).SerializeToString(), example.numpy())
    sliced = network.deployed.slice(kept)
    small = shrink(network.module, network.space, kept)
    before = run(small, example)

    assert largest_difference(silent, run_onnx(sliced.SerializeToString(), example.numpy())) <= TOLERANCE
    assert largest_difference(silent, before) <= TOLERANCE

    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    small(example).square().mean().backward()
    optimizer.step()
    after = run(small, example)
    with TemporaryDirectory() as folder:
        shipped = written(network, small, kept, Path(folder, "artifact"))
        loaded = load_compressed(FAMILIES[name]()[0], Path(folder, "artifact"))

        assert largest_difference(before, after) > 0
        assert structure(onnx.load_from_string(shipped)) == structure(sliced)
        assert largest_difference(after, run_onnx(shipped, example.numpy())) <= TOLERANCE
        assert largest_difference(after, run(loaded, example)) <= TOLERANCE


@pytest.mark.parametrize("name", DEFAULT)
@settings(max_examples=4)
@given(data=st.data())
def test_any_subset_of_the_blocks_is_sliced_trained_and_shipped(name: str, data: st.DataObject) -> None:
    check(name, data.draw(plans(analysed(name)[0])))


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_BLOCKS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_subset_of_the_blocks_of_any_family_is_sliced_trained_and_shipped(name: str, data: st.DataObject) -> None:
    check(name, data.draw(plans(analysed(name)[0])))


@families
def test_nothing_of_a_dropped_block_is_left_in_the_network(name: str) -> None:
    network, _ = analysed(name)
    dropped = {block.name: () for block in network.space.blocks}
    left = shrink(network.module, network.space, dropped).state_dict()
    gone = {tensor for block in network.space.blocks for tensor in block.tensors if _has_layer(tensor)}

    assert gone
    assert gone & set(left) == set()


def _has_layer(tensor: str) -> bool:
    """Scales such as ConvNeXt's gamma are no layer's. They are left in the user's module, and multiply zeros."""
    return tensor.endswith(("weight", "bias"))


@pytest.mark.parametrize("name", DEFAULT)
def test_a_plan_whose_block_is_not_in_the_network_is_refused(name: str, tmp_path: Path) -> None:
    network, _ = analysed(name)
    kept = {**all_channels(network.space), network.space.blocks[0].name: ()}
    folder = tmp_path / "artifact"
    written(network, shrink(network.module, network.space, kept), kept, folder)
    text = (folder / "plan.json").read_text()
    for word in ('"bypassed": [\n    "', '"silenced": [\n    "', '"node": "'):
        text = text.replace(word, f"{word}no")
    (folder / "plan.json").write_text(text)

    with pytest.raises((WeightsError, RunError)):
        load_compressed(FAMILIES[name]()[0], folder)
