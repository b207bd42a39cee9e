"""Any subset of the blocks of a small family can be dropped: sliced, answered, trained, exported again and loaded."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES
from torch import Tensor, nn

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.core.plan import Kept
from pipeline.core.restriction import Restriction
from pipeline.errors import RunError, WeightsError
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import PrunableNetwork, random_kept
from pipeline.graph.settings import PruningSettings
from pipeline.graph.shrink import shrink
from pipeline.graph.silence import silence
from pipeline.graph.structure import structure
from pipeline.graph.weight_file import assembled
from pipeline.packaging.pack import NETWORK_FILE, load_compressed, plan_json, weights_bytes

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


def plans(network: PrunableNetwork) -> list[Kept]:
    """Random channels without a block, without all of them, without the first, and without random ones."""
    names = [block.name for block in network.space.blocks]
    channels = {name: kept for name, kept in random_kept(network.space, 7).items() if kept}
    return [{**channels, **dict.fromkeys(some, ())} for some in ([], names, names[:1])] + [random_kept(network.space, 8)]


def run(module: nn.Module, example: Tensor) -> np.ndarray:
    with torch.no_grad():
        answer: np.ndarray = module.eval()(example).numpy()
    return answer


@families
def test_a_network_without_any_of_its_blocks_answers_like_the_silenced_one(name: str) -> None:
    network, example = analysed(name)
    assert network.space.blocks
    whole = network.trainable.slice({})
    for kept in plans(network):
        silent = run_onnx(silence(whole, network.trainable.labelled, kept).SerializeToString(), example.numpy())
        sliced = run_onnx(network.deployed.slice(kept).SerializeToString(), example.numpy())

        assert largest_difference(silent, sliced) <= TOLERANCE
        assert largest_difference(silent, run(shrink(network.module, network.space, kept), example)) <= TOLERANCE


@families
def test_it_trains_a_step_and_its_file_has_the_structure_that_was_measured(name: str) -> None:
    network, example = analysed(name)
    for kept in plans(network):
        small = shrink(network.module, network.space, kept).eval()
        before = run(small, example)
        optimizer = torch.optim.SGD(small.parameters(), 0.01)
        small(example).square().mean().backward()
        optimizer.step()
        trained = network.trained(small, kept)

        assert structure(trained) == structure(network.deployed.slice(kept))
        assert largest_difference(before, run(small, example)) > 0
        assert largest_difference(run(small, example), run_onnx(trained.SerializeToString(), example.numpy())) <= TOLERANCE


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


@pytest.fixture(params=DEFAULT)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The files that `load_compressed` reads, and the ONNX file of the same network. The third network is a rebuilt one."""
    network, _ = analysed(request.param)
    kept = {name: channels for name, channels in random_kept(network.space, 3).items() if channels}
    kept[network.space.blocks[0].name] = ()
    small = shrink(network.module, network.space, kept)
    space = network.space if network.origin == "own" else network.trainable.labelled.space
    plan = space.plan({name: len(channels) for name, channels in kept.items()}, [space.blocks[0].name])
    files = {
        "model.onnx": network.trained(small, kept).SerializeToString(),
        "weights.safetensors": weights_bytes(small),
        "plan.json": plan_json(("n.py:net", None), plan, kept, network.origin, None, space.dropped(kept)),
        "family": request.param.encode(),
    }
    if network.origin == "rebuilt":
        whole = {name: channels for name, channels in kept.items() if channels}
        files[NETWORK_FILE] = assembled(network.trainable.weight_slices(whole), values=False).SerializeToString()
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    return tmp_path


def test_a_network_without_blocks_is_loaded_and_answers_like_its_file(packed: Path) -> None:
    module, example = FAMILIES[(packed / "family").read_text()]()

    assert largest_difference(run(load_compressed(module, packed), example), run_onnx((packed / "model.onnx").read_bytes(), example.numpy())) <= TOLERANCE  # fmt: skip


def test_a_plan_whose_block_is_not_in_the_network_is_refused(packed: Path) -> None:
    module, _ = FAMILIES[(packed / "family").read_text()]()
    text = (packed / "plan.json").read_text()
    for word in ('"bypassed": [\n    "', '"silenced": [\n    "', '"node": "'):
        text = text.replace(word, f"{word}no")
    (packed / "plan.json").write_text(text)

    with pytest.raises((WeightsError, RunError)):
        load_compressed(module, packed)
