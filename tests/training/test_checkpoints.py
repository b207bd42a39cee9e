"""Checkpoints as training programs write them: the right state is found, what is taken is said, and nothing in the file runs."""

import argparse
import datetime
import pickle
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import UnsafeWeights, WeightsError
from pipeline.training.checkpoints import is_average, read_checkpoint
from pipeline.training.weights import fill


def network() -> nn.Module:
    """conv(2) -> BatchNorm -> linear(3)"""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def state(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in network().state_dict().items()
    }


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def filled(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What the network holds after it was filled from `path`, and what was said."""
    module, said = network(), list[str]()
    fill(module, path, said.append)
    return dict(module.state_dict()), said


def saved(folder: Path, content: Any, **options: Any) -> Path:
    torch.save(content, folder / "net.pt", **options)
    return folder / "net.pt"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# names


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda net: nn.DataParallel(torch.compile(net)),  # type: ignore[arg-type]
        lambda net: torch.compile(nn.DataParallel(net)),
        lambda net: nn.ModuleDict({"model": net}),
        lambda net: nn.ModuleDict({"model": torch.compile(net)}),  # type: ignore[dict-item]
    ],
    ids=["torch.compile", "DataParallel", "parallel of compiled", "compiled of parallel", "Lightning", "Lightning of compiled"],
)
def test_a_wrapper_s_prefix_is_removed(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """The oracle is what the wrapped network holds itself."""
    net = network()
    found, _ = filled(saved(tmp_path, wrap(net).state_dict()))

    assert same(net.state_dict(), found)


@settings(max_examples=25)
@given(parts=st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "a_b", "0", "weight"]), max_size=4))
def test_any_common_prefix_is_removed(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    prefix = "".join(f"{part}." for part in parts)
    path = tmp_path_factory.mktemp("prefix") / "net.safetensors"
    safetensors.torch.save_file(named(prefix, state()), path)

    assert same(state(), filled(path)[0])


def test_a_wrapper_inside_the_network_is_removed_too(tmp_path: Path) -> None:
    """0 and 1 compiled for themselves: '0._orig_mod.weight'."""
    net = network()
    net[0], net[1] = torch.compile(net[0]), torch.compile(net[1])  # type: ignore[index]
    found, said = filled(saved(tmp_path, net.state_dict()))

    assert any("_orig_mod" in name for name in net.state_dict())
    assert same({name.replace("_orig_mod.", ""): tensor for name, tensor in net.state_dict().items()}, found)
    assert said == []


def test_what_lies_beside_the_network_in_a_lightning_module_is_left_out_and_said(tmp_path: Path) -> None:
    content = {"state_dict": {**named("model.", state()), "loss.weight": torch.ones(3), "loss.pos": torch.ones(3)}}
    found, said = filled(saved(tmp_path, content))

    assert same(state(), found)
    assert said == [
        "net.pt: the state dict under 'state_dict' is used",
        "net.pt: only names with the prefix 'model.' are used, and the prefix is removed; ignored because they lack the prefix: 'loss.weight' and 1 more",
    ]


def test_what_a_flop_counter_left_is_ignored_and_said(tmp_path: Path) -> None:
    counted = {"total_ops": torch.zeros(1), "0.total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}
    found, said = filled(saved(tmp_path, {**state(), **counted}))

    assert same(state(), found)
    assert said == ["net.pt: ignored because they are not part of the network: 'total_ops' and 2 more"]


@pytest.mark.parametrize("count", [torch.tensor([7]), torch.tensor(7), None], ids=["an array of one", "a scalar", "absent"])
def test_the_count_of_batches_may_be_written_in_any_way(tmp_path: Path, count: Tensor | None) -> None:
    tensors = {name: tensor for name, tensor in state().items() if "num_batches" not in name}
    found, _ = filled(saved(tmp_path, tensors if count is None else {**tensors, "1.num_batches_tracked": count}))

    assert found["1.num_batches_tracked"] == (0 if count is None else 7)


# which state


@pytest.mark.parametrize("key", ["net", "params", "state_dict", "model", "module", "generator", "a.b"])
def test_a_single_state_is_taken_whatever_it_is_called(tmp_path: Path, key: str) -> None:
    found, said = filled(saved(tmp_path, {"epoch": 3, key: state()}))

    assert same(state(), found)
    assert said == [f"net.pt: the state dict under '{key}' is used"]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"state_dict": state(1), "state_dict_ema": state(2)}, "state_dict_ema"),
        ({"model": state(1), "model_ema": named("module.", state(2))}, "model_ema"),
        ({"params": state(1), "params_ema": state(2)}, "params_ema"),
        ({"model": state(1), "ema": {"step": torch.ones(1), "module": state(2)}}, "ema.module"),
        ({"ema": {**named("online_model.", state(1)), **named("ema_model.", state(2))}}, "ema"),
        ({"state_dict": {**named("model.", state(1)), **named("model_ema.module.", state(2))}}, "state_dict"),
    ],
    ids=["timm", "DeiT", "BasicSR", "nested", "by prefix", "Lightning"],
)
def test_an_average_is_preferred_where_it_is_called_so(tmp_path: Path, content: dict[str, Any], where: str) -> None:
    found, said = filled(saved(tmp_path, content))

    assert same(state(2), found)
    assert said[0].startswith(f"net.pt: the state dict under '{where}' is used")
    assert "an average over training steps" in " ".join(said)
    assert "also matching" in said[-1]


def test_an_average_of_another_network_does_not_come_before_the_state_that_fits(tmp_path: Path) -> None:
    found, said = filled(saved(tmp_path, {"model": state(1), "ema": {"shadow": torch.ones(3)}}))

    assert same(state(1), found)
    assert said == ["net.pt: the state dict under 'model' is used"]


def test_where_two_states_fit_the_usual_name_is_taken_and_the_other_is_named(tmp_path: Path) -> None:
    found, said = filled(saved(tmp_path, {"best": state(2), "model": state(1)}))

    assert same(state(1), found)
    assert said[-1] == "net.pt: also matching: 'best'; to use another state dict, save it as a separate file"


def test_torch_s_own_average_is_read(tmp_path: Path) -> None:
    average = torch.optim.swa_utils.AveragedModel(network())
    average.update_parameters(network())
    found, _ = filled(saved(tmp_path, {"swa": average.state_dict()}))

    assert same(dict(average.module.state_dict()), found)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("model_ema", True), ("EMA", True), ("ema.module", True), ("state_dict_ema", True), ("schema", False), ("emails", False)],
)
def test_what_is_called_an_average(name: str, is_one: bool) -> None:
    assert is_average(name) is is_one


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"model": {"0.weight": torch.ones(2, 1, 3, 3)}}, "the state under 'model' lacks '0.bias' and 6 more; it may"),
        ({"model": named("x.", {**state(), "more": torch.ones(1)})}, "has an unknown 'x.more'; it may belong to another network"),
        (
            {"a": {"x": torch.ones(1)}, "b": {"0.weight": torch.ones(2, 1, 3, 3)}},
            "'b' lacks '0.bias' and 6 more (the file contains",
        ),
        ({**state(), "0.weight": torch.ones(2, 1, 3, 3, dtype=torch.complex64)}, "'0.weight' contains complex numbers"),
        ({**state(), "0.weight": torch.ones(2, 1, 3, 3).to_sparse()}, "'0.weight' is quantised, sparse or without values"),
    ],
    ids=["lacks", "unknown behind a prefix", "of several", "complex", "sparse"],
)
def test_a_state_that_does_not_fit_is_named_with_what_is_wrong(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(WeightsError) as caught:
        filled(saved(tmp_path, content))

    assert complaint in str(caught.value)


# what else is in a training checkpoint


def training_checkpoint() -> dict[str, Any]:
    """As training scripts write it, with an object of every harmless kind."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    return {
        "model": state(1),
        "model_ema": named("module.", state(2)),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), milestones=[30, 60]),
        "config": types.SimpleNamespace(width=1.0),
        "best": np.float64(93.1),
        "confusion": np.eye(3),
        "rng": np.random.default_rng(0).integers(9, size=4),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "took": datetime.timedelta(hours=3),
        "history": defaultdict(list, {"loss": [1.0, 0.5]}),
        "last": deque([1, 2], maxlen=5),
        "counts": Counter("aab"),
        "ordered": OrderedDict(a=1),
        "classes": frozenset({"cat", "dog"}),
        "path": Path("/data/images"),
        "shape": torch.Size([1, 2]),
        "kind": int,
        "version": torch.__version__,
    }


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}], ids=["archive", "before archives"])
def test_a_training_checkpoint_is_read_around_its_objects(tmp_path: Path, options: dict[str, Any]) -> None:
    found, said = filled(saved(tmp_path, training_checkpoint(), **options))

    assert same(state(2), found)
    assert said[0] == "net.pt: the state dict under 'model_ema' is used (an average over training steps)"


class Loud:
    """Harmless by name where it takes another's, and it would be heard if it were constructed."""

    built = 0

    def __init__(self, *_arguments: object) -> None:
        Loud.built += 1


def test_no_class_of_the_list_is_ever_constructed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, {"model": state(1), "args": argparse.Namespace(lr=0.1), "path": Path("x")})
    monkeypatch.setattr(argparse, "Namespace", Loud)
    monkeypatch.setattr("pathlib.PosixPath", Loud)
    read_checkpoint(path)

    assert Loud.built == 0


class Config:
    """A class of the user's own."""

    width = 1


class Detector(nn.Module):
    """A network that was pickled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("content", "what", "saving"),
    [
        (Detector(), "test_checkpoints.Detector", "loaded.state_dict()"),
        ({"epoch": 3, "ema": None, "model": Detector()}, "test_checkpoints.Detector", "loaded['model'].state_dict()"),
        ({"ema": Detector(), "model": Detector()}, "test_checkpoints.Detector", "loaded['ema'].state_dict()"),
        ({"state_dict": state(), "cfg": Config()}, "test_checkpoints.Config", "loaded['state_dict']"),
    ],
    ids=["a module", "as ultralytics saves", "with an average", "a config"],
)
def test_what_cannot_be_read_safely_is_refused_with_two_lines_that_convert_it(
    tmp_path: Path, content: Any, what: str, saving: str
) -> None:
    """The two lines are run, and what they write fits."""
    path = saved(tmp_path, content)
    with pytest.raises(UnsafeWeights) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    lines = text.split("`")[1::2]
    exec("\n".join(lines), {})

    assert text.startswith(
        f"{path}: contains a Python object of {what}, which can run code when it is read; if you trust the file"
    )
    assert f"torch.save({saving}, " in lines[1]
    assert len(lines) == 2
    assert read_checkpoint(tmp_path / "net-state.pt")


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_program_is_called_so_and_the_two_lines_convert_it(tmp_path: Path) -> None:
    net = network()
    torch.jit.save(torch.jit.trace(net.eval(), torch.ones(1, 1, 4, 4)), tmp_path / "net.pt")
    with pytest.raises(UnsafeWeights) as caught:
        read_checkpoint(tmp_path / "net.pt")
    exec("\n".join(str(caught.value).split("`")[1::2]), {})

    assert str(caught.value).startswith(f"{tmp_path / 'net.pt'}: a TorchScript program, which can run code when it is read;")
    assert same(net.state_dict(), filled(tmp_path / "net-state.pt")[0])


def test_a_state_that_was_pickled_without_torch_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(pickle.dumps(state(), protocol=4))
    with pytest.raises(UnsafeWeights, match="a pickled object or program"):
        read_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["net.pt", "pytorch_model.bin", "net"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    safetensors.torch.save_file(state(), tmp_path / name)

    assert same(state(), filled(tmp_path / name)[0])


def test_a_folder_is_no_weights_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder; give the weights file"):
        read_checkpoint(tmp_path)


def test_a_checkpoint_that_holds_itself_is_read_to_its_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": state(1)}
    content["self"] = content

    assert list(read_checkpoint(saved(tmp_path, content))) == ["model"]
