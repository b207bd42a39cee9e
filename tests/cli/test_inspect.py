"""`compress inspect`: what is known of a network before a run."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
from helpers.nets import ZOO, build
from helpers.onnx_files import as_keras, traced
from helpers.pages import inspection
from helpers.profiles import command, here, there
from helpers.sshd import Board, needs_sshd
from PIL import Image

from pipeline.cli.screen_inspection import print_inspection
from pipeline.cli.terminal import make_console
from pipeline.errors import ModelError
from pipeline.inspection.inspect_network import EVENLY_ASSUMED


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "net.onnx"
    path.write_bytes(as_keras())
    return path


def test_the_table_names_layers_groups_and_what_cannot_be_pruned(net: Path) -> None:
    result = command("inspect", "--model", net, "--page", net.with_name("page.html"))
    told = " ".join(result.output.split())

    assert result.exit_code == 0, result.output
    assert "model.a Conv 3x3 32x12x12" in told
    assert "group channels smallest saves params saves MACs layers model.a 32 4" in told
    assert "not prunable: model.head: its channels are the network's output" in told
    assert "note: the file takes images as 1x12x12x3; the compressed file takes 1x3x12x12" in told
    assert "latency" not in told
    assert net.with_name("page.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "code", "missing"),
    [
        (("inspect", "--model", "none.onnx"), 20, "none.onnx"),
        (("inspect", "--model", "net.onnx/none.onnx"), 20, "net.onnx/none.onnx"),
        (("--target", "local", "--model", "net.onnx", "--data", "none.npz"), 30, "none.npz"),
    ],
)
def test_a_file_that_does_not_exist_is_refused_before_anything_is_loaded(
    net: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int, missing: str
) -> None:
    monkeypatch.chdir(net.parent)
    result = command(*options)

    assert result.exit_code == code
    assert result.output.startswith(f"compress: {missing}: cannot be read (No")
    assert result.output.count("\n") == 1


def test_with_a_target_and_images_the_plans_are_measured_and_the_search_is_estimated(net: Path, tmp_path: Path) -> None:
    for number in range(10):
        Image.new("RGB", (12, 12), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "preprocessing.yaml").write_text("mean: [0, 0, 0]\nstd: [1, 1, 1]\n")
    target = here(tmp_path, {"channel_step": 8})
    result = command("inspect", "--model", net, "--target", target, "--data", tmp_path, "--trials", 7, "--json")
    found = json.loads(result.stdout)

    assert found["dense"]["latency_p50_ms"]["value"] > 0
    assert found["thinnest"]["latency_p50_ms"]["value"] > 0
    assert {group["name"]: group["smallest"] for group in found["groups"]} == {"model.a": 8, "model.b": 8}
    assert all(layer["latency_ms"] is not None for layer in found["layers"])
    assert found["search_s"] == pytest.approx(7 * found["trial_s"])
    assert found["scored"]
    assert found["fingerprint"]["mode"] == "device"


@needs_sshd
@pytest.mark.slow
def test_over_ssh_the_device_times_the_layers(net: Path, tmp_path: Path, board: Board) -> None:
    target = there(tmp_path, board, {"channel_step": 8})
    found = json.loads(command("inspect", "--model", net, "--target", target, "--json").stdout)

    assert found["fingerprint"]["mode"] == "device"
    assert sum(layer["latency_ms"] for layer in found["layers"]) > 0
    assert not [notice for notice in found["notices"] if "ssh" in notice]


def test_without_a_target_nothing_is_measured(net: Path) -> None:
    found = json.loads(command("inspect", "--model", net, "--freeze", "model.a", "--min-width", "model.b=50%", "--json").stdout)

    assert (found["fingerprint"], found["search_s"], found["dense"]["latency_p50_ms"]) == (None, None, None)
    assert {group["name"]: group["smallest"] for group in found["groups"]} == {"model.b": 12}
    assert {"name": "model.a", "reason": "--freeze 'model.a' matches model.a"} in found["not_prunable"]
    assert sum(layer["macs"] for layer in found["layers"]) == found["dense"]["macs"]


def test_a_network_from_code_needs_no_weights_and_no_images(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\ndef net():\n return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3))\n"
    )
    model = ("--model", tmp_path / "nets.py:net")
    found = json.loads(command("inspect", *model, "--shape", "1x3x9x9", "--json").stdout)

    refused = command("inspect", *model)

    assert [layer["name"] for layer in found["layers"]] == ["0", "1"]
    assert refused.exit_code == ModelError.exit_code
    assert refused.stderr.endswith("the size of its images is not known; give --data, or --shape 1x3x224x224\n")


def test_a_task_of_the_users_own_gives_the_inputs_and_the_score(tmp_path: Path) -> None:
    """Two inputs, a dict as the result, and a score that only the task can give."""
    (tmp_path / "two.py").write_text(
        """
import torch
from torch import nn
from pipeline import OwnTask

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 16, 3), nn.Conv2d(1, 16, 3)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image, depth):
        return {"mask": self.head((self.image(image) + self.depth(depth)).relu())}

def task():
    inputs = (torch.rand(4, 3, 8, 8), torch.rand(4, 1, 8, 8))
    def score(module):
        print("scored:", *module(*inputs))
        return 50.0
    return OwnTask(inputs, evaluate=score, train=lambda module: module)
"""
    )
    safetensors.torch.save_file(runpy.run_path(str(tmp_path / "two.py"))["Net"]().state_dict(), tmp_path / "net.safetensors")
    net = ("inspect", "--model", tmp_path / "two.py:Net", "--weights", tmp_path / "net.safetensors")
    result = command(*net, "--task", tmp_path / "two.py:task", "--target", here(tmp_path, {"channel_step": 8}))
    refused = command(*net, "--task", tmp_path / "two.py:task", "--data", tmp_path)

    assert result.exit_code == 0, result.output
    assert "scored: mask" in result.stdout
    assert "without scoring" not in result.output
    assert refused.exit_code == 2
    assert "--data is not used with --task" in refused.stderr


def test_blocks_that_can_be_dropped_are_listed_if_the_job_lets_them_be(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(traced(build(ZOO["residual"]), (1, 3, 8, 8), 13))
    found = json.loads(command("inspect", "--model", tmp_path / "net.onnx", "--depth", "auto", "--json").stdout)

    assert [block["groups"] for block in found["blocks"]] == [["inner.0"]]
    assert 0 < found["blocks"][0]["macs_share"] < 1
    assert {group["name"] for group in found["groups"]} == {"stem.0", "inner.0"}


def test_each_layer_is_one_line_in_a_file_however_long_its_name(tmp_path: Path) -> None:
    found = inspection()
    name = "backbone.stage1.block3.attention.projection.with.a.name.that.is.longer.than.half.of.a.terminal"
    layers = (replace(found.layers[0], name=name, groups=(name,)), *found.layers[1:])
    console = make_console()
    with (tmp_path / "told").open("w+") as console.file:
        print_inspection(console, replace(found, layers=layers))
    lines = (tmp_path / "told").read_text().splitlines()

    assert [line.split()[0] == line.split()[-1] == name for line in lines if name in line] == [True]
    assert max(map(len, lines)) < 300


def test_without_a_target_it_says_how_grouped_layers_are_taken_to_be_pruned_and_with_one_it_measures_that(tmp_path: Path) -> None:
    """3x3 in 16 groups with one output each"""
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\ndef grouped():\n    one = nn.Conv2d(64, 16, 3, padding=1, groups=16)\n"
        "    return nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), one, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))\n"
    )
    options = ("inspect", "--model", f"{tmp_path}/nets.py:grouped", "--shape", "1x3x8x8", "--json")
    assumed = json.loads(command(*options).stdout)
    measured = json.loads(command(*options, "--target", here(tmp_path, {"channel_step": 1})).stdout)

    assert assumed["notices"] == [EVENLY_ASSUMED]
    assert measured["notices"][0].startswith("grouped layers: removing whole groups takes ")
