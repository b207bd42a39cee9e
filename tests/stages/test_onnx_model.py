"""A network that is given as an ONNX file, from the command line to the artifact."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from helpers.graphs import two_by_two
from helpers.image_folder import ImageFolder
from helpers.onnx_files import answers, as_keras
from helpers.places import DIGITS, message
from helpers.profiles import command
from PIL import Image

from pipeline import load_compressed
from pipeline.core.batch import tensors_of
from pipeline.core.opsets import FileFormat
from pipeline.errors import DataError, ModelError, TraceError, WeightsError
from pipeline.graph.given.prepare import prepare
from pipeline.graph.given.read import GivenNetwork
from pipeline.stages.check_network import fit_to_file
from pipeline.stages.input_hashes import origins
from pipeline.stages.onnx_model import write_graph
from pipeline.training.own_task import OwnTask


def photographs(folder: Path, count: int = 12) -> Path:
    """Images directly in a folder, without labels."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    (folder / "preprocessing.yaml").write_text("mean: [0.5, 0.5, 0.5]\nstd: [0.25, 0.25, 0.25]\n")
    return folder


def given_as(data: bytes) -> GivenNetwork:
    """The network as the process that reads foreign files prepares it."""
    made = prepare(data, {}, 18, 23)
    return GivenNetwork(made.model, made.facts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("onnx")
    (folder / "net.onnx").write_bytes(as_keras(size="side"))
    model = ("--model", folder / "net.onnx", "--shape", "images:0=1x12x12x3", "--data", photographs(folder / "photos"))
    return folder, command(*DIGITS, *model, "--budget", "accuracy_drop=100", "--out", folder / "run")


def test_a_file_and_a_flat_folder_of_images_are_enough_for_an_artifact(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    told = " ".join(result.output.split())

    assert result.exit_code == 0, result.output
    assert "agreement with the dense network is judged in place of accuracy" in told
    assert "the file takes images as 1x12x12x3; the compressed file takes 1x3x12x12" in told
    assert "agreement (test)" in told
    assert (folder / "run/artifact/report.html").is_file()


def test_the_compressed_file_has_the_names_of_the_original_and_is_smaller(finished: tuple[Path, Result]) -> None:
    folder, _ = finished
    before, after = (onnx.load(folder / name) for name in ("net.onnx", "run/artifact/model.onnx"))

    assert [value.name for value in after.graph.input] == [value.name for value in before.graph.input]
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    assert after.ByteSize() < before.ByteSize()
    assert "BatchNormalization" not in {node.op_type for node in after.graph.node}


def test_the_torch_network_of_the_artifact_answers_like_its_file(finished: tuple[Path, Result]) -> None:
    artifact = finished[0] / "run/artifact"
    network = load_compressed(torch.nn.Identity(), artifact)
    pixels = np.load(artifact / "golden-inputs.npy")

    assert json.loads((artifact / "plan.json").read_text())["network"] == "rebuilt"
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(answers((artifact / "model.onnx").read_bytes(), pixels), expected, rtol=1e-3, atol=1e-4)


def test_another_file_under_the_same_name_is_another_job(finished: tuple[Path, Result]) -> None:
    model = str(finished[0] / "net.onnx")

    assert set(origins(model, None, None, [])) == {"model"}
    assert origins(model, None, None, []) != origins(__file__.replace("test_onnx_model.py", "missing.onnx"), None, None, [])


def test_the_statistics_of_a_resumed_run_are_those_of_its_first_process(tmp_path: Path) -> None:
    """They could differ in the last bits, and the weights of the run with them."""
    given, dense = given_as(as_keras()), tmp_path / "dense.onnx"
    form = FileFormat(18, 9, 18)
    written = []
    for seed in (0, 1):
        pixels = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        write_graph(given, OwnTask(pixels, evaluate=lambda module: 0.0, train=lambda module: module), form, dense)
        written.append(dense.read_bytes())

    assert written[0] == written[1]


def test_the_graph_of_other_weights_is_written_again(tmp_path: Path) -> None:
    dense, written = tmp_path / "dense.onnx", []
    task = OwnTask(torch.rand(4, 3, 12, 12), evaluate=lambda module: 0.0, train=lambda module: module)
    for number in (0, 1):
        model = onnx.load_model_from_string(as_keras())
        model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data) * [number])
        write_graph(given_as(model.SerializeToString()), task, FileFormat(18, 9, 18), dense)
        written.append(dense.read_bytes())

    assert written[0] != written[1]


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        (("--weights", "net.safetensors"), WeightsError, "an ONNX file has its own weights; leave out --weights"),
        (("--model-arg", "width=0.5"), ModelError, "an ONNX file has no factory that takes arguments; leave out --model-arg"),
        (("--shape", "x=1x3x8x8"), ModelError, "has no input 'x' (--shape); its inputs are images:0"),
    ],
)
def test_options_that_do_not_fit_a_file_are_refused(
    tmp_path: Path, options: tuple[str, ...], error: type[ModelError], expected: str
) -> None:
    (tmp_path / "net.onnx").write_bytes(as_keras())

    assert message((*DIGITS, "--model", str(tmp_path / "net.onnx"), *options), error).endswith(expected)


def own_task(inputs: Any) -> OwnTask:
    return OwnTask(inputs, evaluate=lambda module: 0.0, train=lambda module: module)


PICTURES, COUNTS = torch.rand(4, 3, 16, 16), torch.tensor([1, 2, 3, 4])


def test_inputs_by_name_are_put_in_the_order_of_the_file() -> None:
    """picture (float32), count (int64)"""
    given = given_as(two_by_two())
    found = fit_to_file(own_task({"count": COUNTS, "picture": PICTURES}), given, "net.onnx")

    assert [tuple(tensor.shape) for tensor in tensors_of(found.inputs(2))] == [(2, 3, 16, 16), (2,)]


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (PICTURES, "net.onnx: it has 2 inputs (picture, count), got 1; give one array for each"),
        ({"picture": PICTURES, "n": COUNTS}, "net.onnx: its inputs are picture, count, and the task has picture, n; give one tensor for each"),
        ((PICTURES, COUNTS.float()), "net.onnx: input 'count': got float32 N; the file takes int64 N"),
        ((PICTURES[:, :1], COUNTS), "net.onnx: input 'picture': got float32 Nx1x16x16; the file takes float32 Nx3x16x16"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_a_file_are_refused_with_what_it_takes(inputs: Any, complaint: str) -> None:
    with pytest.raises(DataError) as caught:
        fit_to_file(own_task(inputs), given_as(two_by_two()), "net.onnx")

    assert str(caught.value) == complaint


def test_a_shape_without_a_file_is_refused() -> None:
    assert message((*DIGITS, "--shape", "1x3x8x8"), ModelError) == "--shape fixes the sizes of an ONNX file; digits is none"


def test_images_of_other_classes_are_refused(tmp_path: Path, image_folder: ImageFolder) -> None:
    (tmp_path / "net.onnx").write_bytes(as_keras())
    data = image_folder(train=4, test=2, size=(12, 12))  # type: ignore[call-arg]

    expected = f"{tmp_path}/net.onnx: the network has 4 classes, but {data} has 2; give the images that it was trained on"
    assert message((*DIGITS, "--model", str(tmp_path / "net.onnx"), "--data", str(data)), ModelError) == expected


def test_images_of_another_size_are_refused_with_the_size_that_the_file_takes(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(as_keras(size=20))
    told = message((*DIGITS, "--model", str(tmp_path / "net.onnx"), "--data", str(photographs(tmp_path / "photos"))), TraceError)

    assert "has the shape (1, 3, 12, 12), and the graph takes (batch, 3, 20, 20); declare size, mean and std" in told
    assert told.endswith("in preprocessing.yaml beside the images")


@pytest.mark.parametrize("text", ["input", "input=", "1x3x", "input=1x3x0x8", "input=1x3x-1x8", "a=1xb"])
def test_a_malformed_shape_is_a_wrong_command_line(text: str) -> None:
    result = command("--target", "raspberrypi", "--shape", text)

    assert result.exit_code == 2
    assert "give NAME=SIZES, such as input=1x3x224x224" in " ".join(result.stderr.split())


def test_an_opset_that_the_device_cannot_read_is_refused_with_a_remedy(tmp_path: Path) -> None:
    task = OwnTask(torch.zeros(2, 3, 12, 12), evaluate=lambda module: 0.0, train=lambda module: module)

    with pytest.raises(TraceError, match="opset 21, and the device reads 19; write the device's version as runtime"):
        write_graph(given_as(as_keras(21)), task, FileFormat(18, 9, 19), tmp_path / "dense.onnx")
