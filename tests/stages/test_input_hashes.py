"""A finished run knows what it was made from, and its files know whether they are still the same."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from helpers.places import TRAINED
from PIL import Image

from pipeline.cli.main import compress
from pipeline.core.run import Run, open_run
from pipeline.errors import OtherJob
from pipeline.stages.input_hashes import bind_input_hashes, code_files, code_root, origins
from pipeline.system.bundled import shipped_folder, shipped_weights
from pipeline.system.files import sha256_file

NET = '''
from layers import WIDTH
from torch import nn

PREPROCESSING = {"size": 8, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Net(nn.Module):
    """conv(WIDTH) -> conv(64) -> mean -> linear"""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(WIDTH, 64, 3), nn.Linear(64, 2)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))
'''
OPTIONS = (
    "--dry-run",
    "--trials",
    "2",
    "--supernet",
    "2",
    *TRAINED,
    "--searcher",
    "random",
    "--budget",
    "latency_p50=99%",
)


def images(root: Path, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = generator.integers(128 * label, 128 * label + 128, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.bmp")


def again(folder: Path) -> Result:
    """The same command once more."""
    arguments = ("--target", "raspberrypi", "--model", f"{folder / 'net.py'}:Net", "--weights", str(folder / "net.safetensors"))
    places = ("--data", str(folder / "images"), "--out", str(folder / "run"))
    return CliRunner().invoke(compress, [*arguments, *places, *OPTIONS], catch_exceptions=False)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a user's network that is finished, with all that it was made from."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "net.py").write_text(NET)
    (folder / "layers.py").write_text("WIDTH = 64\n")
    torch.manual_seed(0)
    state = {
        "a.weight": torch.randn(64, 3, 3, 3) / 5,
        "a.bias": torch.randn(64),
        "b.weight": torch.randn(64, 64, 3, 3) / 24,
        "b.bias": torch.randn(64),
        "head.weight": torch.randn(2, 64),
        "head.bias": torch.randn(2),
    }
    safetensors.torch.save_file(state, folder / "net.safetensors")
    images(folder / "images")
    result = again(folder)
    assert result.exit_code in (0, 14), result.output
    return folder


@pytest.fixture
def finished(first: Path) -> Path:
    """`first`, as it was; a test may change it, and it is put back afterwards."""
    kept = first.with_name("kept")
    shutil.copytree(first, kept)
    yield first
    shutil.rmtree(first)
    kept.rename(first)


def test_a_finished_run_of_the_same_files_is_not_done_again(finished: Path) -> None:
    for path in (finished / "images").rglob("*.bmp"):
        os.utime(path)  # another time is no other image
    result = again(finished)

    assert result.exit_code in (0, 14), result.output
    assert "already done" in result.stdout
    assert "not compared" not in result.stdout


def other_weights(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "net.safetensors")
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in state.items()}, folder / "net.safetensors")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (other_weights, 'weights: "'),
    "images of the same names and sizes": (lambda folder: images(folder / "images", seed=1), 'data: "'),
    "one image more": (
        lambda folder: shutil.copy(folder / "images/train/cat/0.bmp", folder / "images/train/cat/9.bmp"),
        'data: "',
    ),
    "how images are read": (
        lambda folder: (folder / "images/preprocessing.yaml").write_text("augment: [flip]\n"),
        "preprocessing: not set in the directory",
    ),
    "the network's code": (lambda folder: (folder / "net.py").write_text(NET.replace(".relu()", "", 1)), 'code net.py: "'),
    "code that it imports": (lambda folder: (folder / "layers.py").write_text("WIDTH = 65\n"), 'code layers.py: "'),
    "code that is gone": (lambda folder: (folder / "layers.py").unlink(), '"missing" now'),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_finished_run_of_other_files_under_the_same_names_is_another_job(finished: Path, case: str) -> None:
    change, said = CHANGES[case]
    change(finished)
    result = again(finished)

    assert result.exit_code == OtherJob.exit_code, result.output
    assert said in result.stderr
    assert "choose another --out" in result.stderr


def test_a_run_that_was_cut_off_is_another_job_too_when_its_code_has_changed(finished: Path) -> None:
    shutil.rmtree(finished / "run" / "artifact")
    (finished / "net.py").write_text(NET.replace(".relu()", "", 1))

    assert again(finished).exit_code == OtherJob.exit_code


def without_sources(folder: Path) -> None:
    """The journal as an earlier version wrote it."""
    path = folder / "run" / "journal.jsonl"
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b'"kind":"sources"' not in line))


def test_a_finished_run_of_an_earlier_version_says_that_nothing_was_compared(finished: Path) -> None:
    """the trials still know of their sources here, which those of an earlier version do not; nothing asks them"""
    without_sources(finished)
    result = again(finished)

    assert result.exit_code in (0, 14), result.output
    assert "already done" in result.stdout
    assert "were not recorded, so the inputs were not compared" in " ".join(result.stdout.split())


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit": flipped,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"garbage"),
}


@pytest.mark.parametrize(
    "damage", ["one bit", "empty", *(pytest.param(each, marks=pytest.mark.slow) for each in ("cut short", "garbage"))]
)
def test_a_damaged_dense_graph_of_a_finished_run_is_made_anew_and_the_run_says_so(finished: Path, damage: str) -> None:
    path = finished / "run" / "dense.onnx"
    before = path.read_bytes()
    DAMAGES[damage](path)
    damaged = path.read_bytes()
    result = again(finished)

    assert result.exit_code in (0, 14), result.output
    said = " ".join(result.stdout.split())
    assert "dense.onnx: it was changed since this run wrote it; it is created again" in said
    assert "already done" in said
    assert path.read_bytes() == before
    assert path.with_name("dense.onnx.broken").read_bytes() == damaged


def test_a_damaged_artifact_is_made_anew_and_the_run_says_so(finished: Path) -> None:
    artifact = finished / "run" / "artifact"
    before = (artifact / "model.onnx").read_bytes()
    flipped(artifact / "model.onnx")
    result = again(finished)

    assert result.exit_code in (0, 14), result.output
    assert "artifact: incomplete, so it is created again" in " ".join(result.stdout.split())
    assert (artifact / "model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [("finetune.safetensors", "one bit"), pytest.param("supernet.safetensors", "empty", marks=pytest.mark.slow)],
)
def test_damaged_weights_of_a_run_that_was_cut_off_are_made_anew_and_the_run_says_so(
    finished: Path, name: str, damage: str
) -> None:
    run = finished / "run"
    before = (run / "artifact" / "model.onnx").read_bytes()
    shutil.rmtree(run / "artifact")
    DAMAGES[damage](run / name)
    result = again(finished)

    assert result.exit_code in (0, 14), result.output
    assert f"{name}: it was changed since this run wrote it; it is created again" in " ".join(result.stdout.split())
    assert (run / "artifact" / "model.onnx").read_bytes() == before


# the mechanism alone


def made(run: Run, content: bytes, readable: Callable[[bytes], object] = len) -> tuple[bytes, list[str]]:
    """dense.onnx after a block that makes it where there is none, and what the run said."""
    told: list[str] = []
    with run.derived(run.dense_graph, readable, told.append):
        if not run.dense_graph.is_file():
            run.dense_graph.write_bytes(content)
    return run.dense_graph.read_bytes(), told


def test_a_derived_file_is_taken_as_long_as_its_hash_is_the_journal_s(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        assert made(run, b"one") == (b"one", [])
    with open_run(tmp_path, {}) as run:
        assert made(run, b"two") == (b"one", [])
        run.dense_graph.write_bytes(b"foreign")
        data, told = made(run, b"two")
    assert (data, len(told)) == (b"two", 1)
    assert (tmp_path / "dense.onnx.broken").read_bytes() == b"foreign"
    with open_run(tmp_path, {}) as run:
        assert made(run, b"three") == (b"two", [])


def test_a_derived_file_of_no_known_hash_is_taken_when_it_can_be_read(tmp_path: Path) -> None:
    """of an earlier version, or killed before the hash was written"""

    def readable(data: bytes) -> None:
        assert data != b"garbage"

    (tmp_path / "dense.onnx").write_bytes(b"old")
    with open_run(tmp_path, {}) as run:
        assert made(run, b"new", readable) == (b"old", [])
    (tmp_path / "journal.jsonl").unlink()
    (tmp_path / "dense.onnx").write_bytes(b"garbage")
    with open_run(tmp_path, {}) as run:
        data, told = made(run, b"new", readable)
        assert data == b"new"
        assert told == [f"{run.dense_graph}: it is damaged; it is created again, and the old file is kept as dense.onnx.broken"]


def test_a_pipe_in_the_place_of_a_derived_file_is_set_aside(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "dense.onnx")
    with open_run(tmp_path, {}) as run:
        data, told = made(run, b"new")
        assert data == b"new"
        assert "it cannot be read (not a regular file)" in told[0]


def test_the_weights_that_ship_with_a_named_network_are_among_the_inputs(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        bind_input_hashes(run, "digits", None, None)
        assert run.facts("sources") == {"weights": sha256_file(shipped_folder("models") / "digits.safetensors")[:16]}
        bind_input_hashes(run, "digits", None, None)
        with pytest.raises(OtherJob, match='weights: "'):
            bind_input_hashes(run, "digits", shipped_folder("models") / "resnet20-cifar10.safetensors", None)


def test_a_run_of_an_older_version_whose_shipped_weights_were_not_hashed_goes_on(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        run.bind("sources", {})
        bind_input_hashes(run, "digits", None, None)
        with pytest.raises(OtherJob, match="weights: not set in the directory"):
            bind_input_hashes(run, "digits", shipped_folder("models") / "digits.safetensors", None)


def test_other_images_without_labels_are_other_inputs(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"one")
    with open_run(tmp_path / "run", {}) as run:
        bind_input_hashes(run, "digits", None, None, photos)
        bind_input_hashes(run, "digits", None, None, photos)
        (photos / "a.png").write_bytes(b"two")
        with pytest.raises(OtherJob, match='unlabelled data: "'):
            bind_input_hashes(run, "digits", None, None, photos)


def test_a_network_that_is_no_shipped_one_has_no_shipped_weights() -> None:
    assert [shipped_weights(spec) for spec in ("nets.py:digits", "torchvision:resnet18", "vgg16_bn", "../models/digits")] == 4 * [
        None
    ]


def test_the_code_of_a_user_is_what_was_imported_from_below_his_file(first: Path) -> None:
    """net.py and layers.py, which the first run imported; neither torch nor this program"""
    spec = f"{first / 'net.py'}:Net"

    assert code_root(spec, "digits") == first
    assert [path.name for path in code_files(spec, "digits")] == ["layers.py", "net.py"]
    assert code_files("digits", "digits") == []
    assert code_files("torchvision:resnet18", "torchvision:CIFAR10") == []


def test_the_middle_of_a_large_image_is_not_read_and_its_ends_and_size_are(tmp_path: Path) -> None:
    path = tmp_path / "cat" / "x.png"
    path.parent.mkdir()
    seen = set()
    for data in (b"a" * 3_000_000, b"b" + b"a" * 2_999_999, b"a" * 2_999_999 + b"b", b"a" * 3_000_001):
        path.write_bytes(data)
        seen.add(origins("digits", None, str(tmp_path), [])["data"])

    assert len(seen) == 4


def test_other_arrays_under_the_same_name_are_another_job(tmp_path: Path) -> None:
    path, found = tmp_path / "inputs.npz", []
    for seed in (0, 0, 1):
        np.savez(path, x=np.random.default_rng(seed).standard_normal((12, 3)))
        found.append(origins("digits", None, str(path), []))
    (tmp_path / "preprocessing.yaml").write_text("mean: [0.5]\nstd: [0.5]\n")

    assert found[0] == found[1] != found[2]
    assert set(origins("digits", None, str(path), [])) == {"data", "preprocessing"}
