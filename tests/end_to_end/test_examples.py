"""The worked examples of the documentation in small: their data, their parts, and whole runs by the command line."""

from pathlib import Path
from types import ModuleType

import detection as detection_example
import pytest
import safetensors.torch
import segmenter as segmenter_example
import torch
from click.testing import CliRunner, Result
from detection import (
    Targets,
    boxes_of,
    loss_of,
    mean_average_precision,
    places_of,
    select,
    targets_of,
)
from detector import BINS, STRIDES, detector
from scenes import CLASSES, Scenes, make_scenes
from segmenter import iou_of_each, segmenter
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cli.main import compress
from pipeline.core.artifact import Artifact, read_artifact

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return make_scenes(6, 96, seed=0)


def perfect(targets: Targets, size: int) -> dict[str, Tensor]:
    """The outputs of a network that answers as it should: each side has its chances in the two bins beside its distance."""
    places = places_of(size)
    ends = torch.cat((places.centres - targets.boxes[..., :2], targets.boxes[..., 2:] - places.centres), 2)
    distances = (ends / places.strides[:, None]).clamp(0, BINS - 1)  # (N, places, 4)
    chances = (1 - (distances[..., None] - torch.arange(float(BINS))).abs()).clamp(1e-9)
    scores = F.one_hot(targets.labels.clamp(0), len(CLASSES)) * (targets.labels >= 0)[..., None] * 20.0 - 10.0
    return {"sides": chances.log().flatten(2).transpose(1, 2), "scores": scores.transpose(1, 2)}


def test_a_seed_always_gives_the_same_scenes(scenes: Scenes) -> None:
    again, others = make_scenes(6, 96, seed=0), make_scenes(6, 96, seed=1)

    assert torch.equal(scenes.pixels, again.pixels)
    assert torch.equal(torch.cat(scenes.boxes), torch.cat(again.boxes))
    assert not torch.equal(scenes.pixels, others.pixels)


def test_boxes_are_the_tightest_around_the_masks(scenes: Scenes) -> None:
    for mask, boxes, labels in zip(scenes.masks, scenes.boxes, scenes.labels, strict=True):
        covered = torch.zeros_like(mask)
        for (left, top, right, bottom), label in zip(boxes.long().tolist(), labels.tolist(), strict=True):
            inside = mask[top:bottom, left:right] == 1 + label
            covered[top:bottom, left:right] = 1
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert (covered >= (mask > 0)).all()


def test_perfect_outputs_are_decoded_to_the_objects_and_score_100(scenes: Scenes) -> None:
    targets = targets_of(scenes)
    outputs = perfect(targets, scenes.size)
    is_object = targets.labels >= 0
    boxes = boxes_of(outputs["sides"], places_of(scenes.size))

    assert torch.allclose(boxes[is_object], targets.boxes[is_object], atol=1e-3)
    assert mean_average_precision(select(outputs, scenes.size), scenes) == pytest.approx(100.0)


def test_the_loss_is_least_for_perfect_outputs(scenes: Scenes) -> None:
    targets, places = targets_of(scenes), places_of(scenes.size)
    outputs = perfect(targets, scenes.size)
    shifted = {**outputs, "sides": outputs["sides"].roll(1, 2)}
    losses = [float(loss_of(each, targets, places)) for each in (outputs, shifted)]

    assert losses[0] < losses[1]


def test_the_detector_answers_for_each_place() -> None:
    found = detector(width=2).eval()(torch.zeros(1, 3, 64, 64))
    places = sum((64 // stride) ** 2 for stride in STRIDES)

    assert {name: tuple(output.shape) for name, output in found.items()} == {
        "sides": (1, 4 * BINS, places),
        "scores": (1, len(CLASSES), places),
    }


def test_a_mask_as_the_answer_has_an_iou_of_100(scenes: Scenes) -> None:
    class Perfect(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return F.one_hot(scenes.masks.long(), 1 + len(CLASSES)).permute(0, 3, 1, 2).float()

    assert iou_of_each(Perfect(), scenes).tolist() == [100.0] * len(scenes)


TINY_TASKS = """
import segmenter, detection

def segment():
    return segmenter.task(segmenter.Settings(size=32, train=40, validation=4, test=8, finetuning_epochs=1))

def detect():
    return detection.task(detection.Settings(size=32, finetuning=40, validation=4, test=8, group=4, finetuning_epochs=1))
"""


def run(folder: Path, network: nn.Module, *arguments: str) -> Result:
    safetensors.torch.save_file(network.state_dict(), folder / "net.safetensors")
    (folder / "tiny.py").write_text(TINY_TASKS)
    return CliRunner().invoke(
        compress, [*arguments, "--weights", str(folder / "net.safetensors"), "--out", str(folder / "run")], catch_exceptions=False
    )


TINY = (
    "--target",
    "raspberrypi",
    "--dry-run",
    "--searcher",
    "uniform",
    "--trials",
    "1",
    "--budget",
    "latency_p50=100%",
    "--budget",
    "params=80%",
    "--budget",
    "accuracy_drop=100",
    "--model-arg",
    "width=4",
)


def finished(result: Result, folder: Path) -> Artifact:
    assert result.exit_code in (0, 14), result.output
    return read_artifact(folder / "run" / "artifact")


def test_the_segmenter_is_pruned_by_the_command_of_its_page(tmp_path: Path) -> None:
    result = run(
        tmp_path, segmenter(4), *TINY, "--model", f"{EXAMPLES}/segmenter.py:segmenter", "--task", f"{tmp_path}/tiny.py:segment"
    )
    artifact = finished(result, tmp_path)

    assert artifact.shipped.macs < artifact.dense.macs
    assert "mIoU (test)" in result.output


def test_the_detector_is_pruned_by_the_command_of_its_page(tmp_path: Path) -> None:
    result = run(
        tmp_path, detector(4), *TINY, "--model", f"{EXAMPLES}/detector.py:detector", "--task", f"{tmp_path}/tiny.py:detect"
    )
    artifact = finished(result, tmp_path)

    assert artifact.shipped.macs < artifact.dense.macs
    assert "mAP (test)" in result.output


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize(
    ("example", "network", "budget", "least", "most_lost"),
    [(segmenter_example, "segmenter.py:segmenter", "3", 45.0, 5.0), (detection_example, "detector.py:detector", "5", 46.0, 5.0)],
    ids=["segmenter", "detector"],
)
def test_the_real_setting_is_pruned_to_half_its_latency(
    tmp_path: Path, example: ModuleType, network: str, budget: str, least: float, most_lost: float
) -> None:
    """The commands of the pages, which have the figures."""
    safetensors.torch.save_file(example.train_from_scratch(example.Settings(), 0).state_dict(), tmp_path / "net.safetensors")
    files = ("--model", f"{EXAMPLES / network}", "--weights", f"{tmp_path}/net.safetensors", "--task", f"{example.__file__}:task")
    budgets = ("--budget", "latency_p50=50%", "--budget", f"accuracy_drop={budget}")
    search = ("--searcher", "uniform", "--trials", "8", "--out", f"{tmp_path}/run")
    artifact = finished(CliRunner().invoke(compress, ["--target", "local", *files, *budgets, *search]), tmp_path)
    dense, after = artifact.dense.score, artifact.shipped.score

    assert dense is not None
    assert after is not None
    assert dense > least
    assert after > dense - most_lost
