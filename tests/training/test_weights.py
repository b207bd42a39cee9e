"""Weights: every usual kind of file fills the network, and no kind can run code."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.data.folder import load_folder
from pipeline.errors import DataError, UnsafeWeights, WeightsError
from pipeline.training.load import find_model, load_data, load_model

NETS = """
from torch import nn

def make_net(num_classes):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path / "nets.py"


@pytest.fixture
def state(nets: Path) -> dict[str, Tensor]:
    """A state dict that fits `make_net`."""
    torch.manual_seed(3)
    return {name: torch.rand_like(tensor.float()) for name, tensor in built(nets).state_dict().items()}


def built(nets: Path, weights: Path | None = None) -> nn.Module:
    return load_model(find_model(f"{nets}:make_net"), weights, num_classes=5)


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda state: state,
    "in state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "in model_state_dict": lambda state: {"model_state_dict": state, "optimizer": {"lr": 0.1}},
    "in model": lambda state: {"model": state},
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "DataParallel in state_dict": lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
    "before BatchNorm counted": lambda state: {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")},
}


def same(network: nn.Module, state: dict[str, Tensor], rtol: float = 0.0) -> bool:
    kept = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return all(torch.allclose(tensor, state[name], rtol=rtol, atol=0.0) for name, tensor in kept.items())


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_fills_the_network_in_each_usual_form(nets: Path, state: dict[str, Tensor], form: str) -> None:
    path = nets.with_name("net.pt")
    torch.save(FORMS[form](state), path)

    assert same(built(nets, path), state)


def test_safetensors_fill_the_network(nets: Path, state: dict[str, Tensor]) -> None:
    path = nets.with_name("net.safetensors")
    safetensors.torch.save_file(state, path)

    assert same(built(nets, path), state)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_half_precision_weights_become_float32(nets: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = nets.with_name(f"net.{suffix}")
    half = {name: tensor.half() for name, tensor in state.items()}
    (safetensors.torch.save_file if suffix == "safetensors" else torch.save)(half, path)
    network = built(nets, path)

    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    assert same(network, state, rtol=1e-3)


def test_a_checkpoint_from_before_archives_is_read(nets: Path, state: dict[str, Tensor]) -> None:
    path = nets.with_name("net.pth")
    torch.save(state, path, _use_new_zipfile_serialization=False)

    assert same(built(nets, path), state)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda state: state.pop("0.bias"), "the file lacks '0.bias'; it may belong to another network"),
        (lambda state: (state.pop("0.bias"), state.pop("3.bias")), "the file lacks '0.bias' and 1 more;"),
        (lambda state: state.update(extra=torch.ones(1)), "the file has an unknown 'extra'; it may belong to another network"),
        (lambda state: state.update({"3.bias": torch.ones(9)}), "'3.bias' is (9,) in the file and (5,) in the network;"),
        (lambda state: state["0.weight"].mul_(torch.nan), "'0.weight' contains values that are not finite"),
        (lambda state: state["1.running_var"].fill_(torch.inf), "'1.running_var' contains values that are not finite"),
    ],
    ids=["missing", "two missing", "unknown", "shape", "nan", "inf"],
)
def test_weights_that_do_not_fit_are_refused(
    nets: Path, state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], object], complaint: str
) -> None:
    path = nets.with_name("net.pt")
    change(state)
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        built(nets, path)

    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


MASKED = """
import torch
from torch import nn

def make_net(num_classes):
    net = nn.Linear(2, num_classes)
    net.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1))
    return net
"""


def test_infinities_that_the_network_itself_has_are_read(nets: Path) -> None:
    """the mask of a causal attention, minus infinity above its diagonal"""
    nets.write_text(MASKED)
    path = nets.with_name("net.pt")
    torch.save(built(nets).state_dict(), path)

    assert torch.equal(built(nets, path).mask, torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("none.pt", None, "no such file; give --weights a .safetensors file or a saved state dict"),
        ("a.pt", b"no checkpoint", "not a readable checkpoint (neither an archive nor a pickle); the file may be incomplete;"),
        ("a.pt", b"version https://git-lfs.github.com/spec/v1\n", "not a readable checkpoint (neither an archive nor a pickle)"),
        ("a.pt", b"", "not a readable checkpoint (EOFError)"),
        ("a.pt", b"PK\x03\x04 torn", "not a readable checkpoint ("),
        ("a.safetensors", b"torn", "not a readable safetensors file ("),
        ("a.safetensors", pickle.dumps({}), "not a readable safetensors file ("),
    ],
    ids=["missing", "text", "git-lfs", "empty", "torn", "torn safetensors", "pickle as safetensors"],
)
def test_a_file_that_is_no_checkpoint_is_refused(nets: Path, name: str, data: bytes | None, complaint: str) -> None:
    path = nets.with_name(name)
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        built(nets, path)

    assert str(caught.value).startswith(f"{path}: {complaint}")


def test_a_list_of_tensors_is_no_state_dict(nets: Path) -> None:
    torch.save([torch.ones(1)], nets.with_name("a.pt"))
    with pytest.raises(WeightsError, match=r"a\.pt: contains list, not a state dict; save model\.state_dict\(\)"):
        built(nets, nets.with_name("a.pt"))


# what could run code


class Bomb:
    """Whoever unpickles it creates a file."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.crater,)


def script(path: Path) -> None:
    with pytest.warns(FutureWarning, match=r"torch\.jit"):
        torch.jit.script(nn.Linear(2, 2)).save(str(path))


WRITERS: dict[str, Callable[[Path, Bomb], object]] = {
    "a pickled module": lambda path, bomb: torch.save(nn.Linear(2, 2), path),
    "TorchScript": lambda path, bomb: script(path),
    "a bomb": lambda path, bomb: torch.save(bomb, path),
    "a bomb in a state dict": lambda path, bomb: torch.save({"state_dict": {"0.weight": bomb}}, path),
    "a bomb in an old checkpoint": lambda path, bomb: torch.save(bomb, path, _use_new_zipfile_serialization=False),
    "a bomb by pickle, protocol 0": lambda path, bomb: path.write_bytes(pickle.dumps(bomb, protocol=0)),
    "a bomb by pickle, protocol 4": lambda path, bomb: path.write_bytes(pickle.dumps(bomb, protocol=4)),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.filterwarnings("error")
def test_weights_that_could_run_code_are_refused_and_do_not_run(nets: Path, kind: str) -> None:
    path, bomb = nets.with_name("net.pt"), Bomb(nets.with_name("crater"))
    WRITERS[kind](path, bomb)
    with pytest.raises(UnsafeWeights, match=r"net\.pt: .*which can run code when it is read; if you trust .*torch\.save\("):
        built(nets, path)

    assert not bomb.crater.exists()


def test_an_exported_program_is_refused_unread(nets: Path) -> None:
    path = nets.with_name("net.pt2")
    path.write_bytes(b"whatever")
    with pytest.raises(UnsafeWeights, match=r"net\.pt2: exported programs \(\.pt2\) can run code"):
        built(nets, path)


def test_the_bomb_is_a_real_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "crater")))

    assert (tmp_path / "crater").exists()


def test_a_bomb_among_the_images_does_not_run(tmp_path: Path) -> None:
    """torchvision keeps MNIST of old as checkpoints, and CIFAR as pickles."""
    for folder, names in (
        ("MNIST/processed", ("training.pt", "test.pt")),
        ("cifar-10-batches-py", ("data_batch_1", "batches.meta")),
    ):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            torch.save((Bomb(tmp_path / "crater"), torch.zeros(3)), tmp_path / folder / name)
    for name in ("MNIST", "CIFAR10"):
        with pytest.raises(DataError, match=f"torchvision:{name}: not found under"):
            load_data(f"torchvision:{name}:{tmp_path}", None, 0)

    assert not (tmp_path / "crater").exists()


def test_a_tag_in_a_yaml_file_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "preprocessing.yaml").write_text(f"size: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'crater'}]\n")
    with pytest.raises(DataError, match=r"preprocessing\.yaml:1: not valid YAML: could not determine a constructor"):
        load_folder(tmp_path, None, 0)

    assert not (tmp_path / "crater").exists()
