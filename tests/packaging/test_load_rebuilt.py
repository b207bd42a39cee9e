"""A network that is rebuilt from the artifact: it answers like the shipped file, it trains, and a foreign file is refused."""

import shutil
from pathlib import Path

import onnx
import pytest
import torch
from helpers.onnx_text import graph
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.errors import RunError, WeightsError
from pipeline.graph.analyse import analyse
from pipeline.graph.prunable_network import random_kept
from pipeline.graph.shrink import shrink
from pipeline.graph.weight_file import assembled
from pipeline.packaging.pack import NETWORK_FILE, load_compressed, plan_json, weights_bytes


class Halves(nn.Module):
    """x -> conv(8) -> batch norm -> split((4, 4)) -> conv of one half, concatenated with the other -> conv(5)"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.out = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.norm(self.a(x)).relu().split((4, 4), 1)
        answer: Tensor = self.out(torch.cat([left, self.b(right).relu()], 1)).mean((2, 3))
        return answer


EXAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact folder with the files that `load_compressed` reads, and the ONNX file of the same network."""
    folder = tmp_path_factory.mktemp("artifact")
    found = analyse(Halves().eval(), EXAMPLE)
    assert found.origin == "rebuilt"
    kept = random_kept(found.space, 1)
    small = shrink(found.module, found.space, kept)
    plan = tuple((name, len(channels)) for name, channels in kept.items())
    (folder / "model.onnx").write_bytes(found.trained(small, kept).SerializeToString())
    (folder / "weights.safetensors").write_bytes(weights_bytes(small))
    (folder / "plan.json").write_bytes(plan_json(("n.py:Halves", None), plan, kept, found.origin))
    skeleton = assembled(found.trainable.weight_slices(kept), values=False)
    (folder / NETWORK_FILE).write_bytes(skeleton.SerializeToString())
    return folder


@pytest.fixture
def folder(pruned: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pruned, tmp_path / "artifact"))


def test_a_rebuilt_network_answers_like_the_shipped_file_whatever_network_is_given(pruned: Path) -> None:
    network = load_compressed(nn.Identity(), pruned)
    with torch.no_grad():
        answer = network(EXAMPLE).numpy()

    assert largest_difference(answer, run_onnx((pruned / "model.onnx").read_bytes(), EXAMPLE.numpy())) <= TOLERANCE


def test_a_rebuilt_network_learns_from_a_batch_in_all_its_weights(pruned: Path) -> None:
    network = load_compressed(nn.Identity(), pruned).train()
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()

    assert {name for name, weight in network.named_parameters() if weight.grad is None} == set()
    assert any(weight.grad.abs().sum() > 0 for weight in network.parameters() if weight.grad is not None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>404 not found</html>",
        graph("(float[1,3,8,8] x) => (float[1,3,8,8] y) { y = Frobnicate(x) }").SerializeToString(),
        graph("(float[1,3,8,8] x) => (float[1,2,8,8] y) { y = Conv(x, gone) }").SerializeToString(),
    ],
    ids=["empty", "failed download", "unknown operator", "weight that is not there"],
)
def test_a_network_file_that_is_none_is_refused(folder: Path, data: bytes) -> None:
    (folder / NETWORK_FILE).write_bytes(data)

    with pytest.raises((RunError, WeightsError), match=NETWORK_FILE):
        load_compressed(nn.Identity(), folder)


def test_a_missing_network_file_is_refused(folder: Path) -> None:
    (folder / NETWORK_FILE).unlink()

    with pytest.raises(RunError, match=NETWORK_FILE):
        load_compressed(nn.Identity(), folder)


@pytest.mark.parametrize("size", [2**40, -1])
def test_a_weight_of_impossible_shape_is_refused_before_memory_is_taken(folder: Path, size: int) -> None:
    model = onnx.load_model_from_string((folder / NETWORK_FILE).read_bytes())
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    tensor.dims[0] = size
    (folder / NETWORK_FILE).write_bytes(model.SerializeToString())

    with pytest.raises(RunError, match="larger than an ONNX file can hold"):
        load_compressed(nn.Identity(), folder)


def test_many_weights_that_are_too_large_together_are_refused(folder: Path) -> None:
    """each of 64 weights alone would fit into a file"""
    model = onnx.load_model_from_string((folder / NETWORK_FILE).read_bytes())
    for number in range(64):
        model.graph.initializer.insert(0, onnx.TensorProto(name=f"extra{number}", data_type=1, dims=[2**24]))
    (folder / NETWORK_FILE).write_bytes(model.SerializeToString())

    with pytest.raises(RunError, match="larger than an ONNX file can hold"):
        load_compressed(nn.Identity(), folder)


def test_weights_of_another_network_are_refused(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(weights_bytes(nn.Linear(3, 4)))

    with pytest.raises(WeightsError, match=r"not the weights of network\.onnx beside it"):
        load_compressed(nn.Identity(), folder)


class Parameters(nn.Module):
    """x -> convolution with a parameter of the network itself, 3 -> 8 -> relu -> another one, 8 -> 5 -> mean"""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Parameter(torch.randn(5, 8, 1, 1))])

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = F.conv2d(F.conv2d(x, self.weights[0]).relu(), self.weights[1]).mean((2, 3))
        return answer


def test_an_own_network_whose_weights_are_parameters_without_a_layer_is_loaded(tmp_path: Path) -> None:
    found = analyse(Parameters().eval(), EXAMPLE)
    kept = random_kept(found.space, 1)
    small = shrink(found.module, found.space, kept)
    plan = tuple((name, len(channels)) for name, channels in kept.items())
    (tmp_path / "weights.safetensors").write_bytes(weights_bytes(small))
    (tmp_path / "plan.json").write_bytes(plan_json(("n.py:Parameters", None), plan, kept, found.origin))
    with torch.no_grad():
        assert found.origin == "own"
        assert torch.equal(load_compressed(Parameters(), tmp_path)(EXAMPLE), small(EXAMPLE))
