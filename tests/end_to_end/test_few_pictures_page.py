"""The commands of docs/few-pictures.md, from a folder of photographs to a shipped file, with the page's own network."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from helpers.image_folder import ImageFolder
from PIL import Image

import pipeline
from pipeline.cli.main import compress
from pipeline.core.artifact import read_artifact

PAGE = (Path(pipeline.__file__).parent.parent / "docs" / "few-pictures.md").read_text()
COMMANDS = re.findall(r"^```\n(compress .*)\n```$", PAGE, re.MULTILINE)
(NETWORK,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
QUICK = ("--dry-run", "--trials", "1", "--supernet", "0", "--finetune-minutes", "0.02", "--searcher", "knapsack")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: ImageFolder) -> Path:
    """Holds what the page asks for: nets.py, net.safetensors, photos/ and images/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETWORK)
    names: dict[str, object] = {}
    exec(NETWORK, names)
    torch.manual_seed(0)
    safetensors.torch.save_file(names["make_net"]().state_dict(), tmp_path / "net.safetensors")  # type: ignore[operator]
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(60):
        pixels = generator.integers(4 * number, 4 * number + 16, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    image_folder(tmp_path / "images", size=(16, 16), train=12, test=10)
    return tmp_path


@pytest.mark.parametrize(
    ("number", "judged", "pictures"), [(0, "agreement", 32), pytest.param(1, "accuracy", 82, marks=pytest.mark.slow)]
)
def test_the_commands_of_the_page_ship_a_file(folder: Path, number: int, judged: str, pictures: int) -> None:
    """Of 60 photographs without labels, 32 are trained with; with 22 labelled images, all 60 are."""
    command = shlex.split(COMMANDS[number])
    result = CliRunner().invoke(compress, [*command[1:], *QUICK, "--budget", "accuracy_drop=2", "--out", "run"])
    printed = " ".join(result.output.split())
    artifact = read_artifact(folder / "run" / "artifact")
    lines = [json.loads(line) for line in (folder / "run" / "journal.jsonl").read_text().splitlines()]
    chosen = [line["text"] for line in lines if line["kind"] == "choice"]
    (sensitivity,) = [line["facts"]["distances"] for line in lines if line["kind"] == "sensitivity"]
    session = onnxruntime.InferenceSession(folder / "run" / "artifact" / "model.onnx")

    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert [row.title for row in artifact.rows if row.key == "accuracy_drop"] == [f"{judged} (test)"]
    assert f"Validation {judged}: dense " in (folder / "run" / "artifact" / "report.html").read_text()
    assert len(sensitivity) == 3  # of 32 channels, a quarter and a half; of 16, only a half, because widths are multiples of 8
    assert min(sensitivity) > 0
    assert chosen[0].startswith(f"recovered from {pictures} pictures, without labels; ")
    assert " ".join(chosen[0].split()[:6]) in printed
    assert 0 < printed.index("accuracy_drop <= 2.00 points will probably stay undecided") < printed.index("search ")
    assert ("about 760 are needed for it" in printed) == (judged == "agreement")
    assert session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 16, 16), np.float32)})[0].shape == (1, 2)


def test_the_page_has_the_two_commands_that_are_tested() -> None:
    assert len(COMMANDS) == 2


def test_without_a_declared_normalisation_the_message_says_what_to_declare(folder: Path) -> None:
    (folder / "nets.py").write_text(NETWORK.replace("PREPROCESSING", "OTHER"))
    (folder / "photos" / "preprocessing.yaml").write_text("size: 16\nresize: 16\n")
    result = CliRunner().invoke(compress, [*shlex.split(COMMANDS[0])[1:], *QUICK, "--out", "run"])

    assert "photos: the normalisation of pixels is not declared" in " ".join(result.output.split())
    assert result.exit_code not in (0, 1)
