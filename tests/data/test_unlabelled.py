"""Images without labels: the folder, the split, and their place among the labelled images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_folder import ImageFolder
from PIL import Image
from torch import Tensor, nn

from pipeline.core.profile import load_profile
from pipeline.data.folder import load_folder
from pipeline.data.images import Images
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.unlabelled import load_unlabelled, with_unlabelled
from pipeline.errors import DataError, EmptyData, ImageMismatch
from pipeline.stages.job import Job
from pipeline.stages.load_splits import load_splits
from pipeline.stages.prepare import load_model_and_task
from pipeline.training.load import answered
from pipeline.training.settings import FinetuneSettings
from pipeline.training.task import Classification

DECLARED = Preprocessing(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def photos(folder: Path, count: int, size: int = 8) -> Path:
    """`count` images; the red of each one is its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.full((size, size, 3), number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def numbers(images: Images) -> list[int]:
    """Which of the `photos` they are."""
    return [round(float(value)) for pixels, _ in images.batches(7) for value in (pixels[:, 0, 0, 0] * 0.5 + 0.5) * 255]


@pytest.mark.parametrize(("count", "sizes"), [(10, [5, 2, 3]), (50, [25, 10, 15]), (150, [90, 15, 45])])
def test_a_folder_without_labels_is_split_into_three_parts_without_overlap(tmp_path: Path, count: int, sizes: list[int]) -> None:
    """Half of the images or more are for training; the test gets more than validation."""
    splits = load_unlabelled(photos(tmp_path / "photos", count), DECLARED, seed=0)
    parts = [numbers(images) for images in (splits.train, splits.validation, splits.test)]

    assert [len(part) for part in parts] == sizes
    assert sorted(number for part in parts for number in part) == list(range(count))


def test_the_seed_changes_the_validation_images_and_not_the_test_images(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", 50)
    first, other = (load_unlabelled(folder, DECLARED, seed) for seed in (0, 1))

    assert numbers(first.test) == numbers(other.test)
    assert numbers(first.validation) != numbers(other.validation)


class Red(nn.Module):
    """Which quarter of the range the red of the first pixel lies in."""

    def forward(self, x: Tensor) -> Tensor:
        value = (x[:, 0, 0, 0] * 0.5 + 0.5) * 255
        return -(value[:, None] - torch.tensor([5.0, 15.0, 25.0, 35.0])).abs()


def test_the_answers_of_the_dense_network_become_the_labels(tmp_path: Path) -> None:
    splits = answered(Red(), load_unlabelled(photos(tmp_path / "photos", 40), DECLARED, seed=0))
    task = Classification(splits, FinetuneSettings(), 0)

    assert splits.classes == ("0", "1", "2", "3")
    assert [int(label) for label in splits.test.labels[splits.test.indices]] == [number // 10 for number in numbers(splits.test)]
    assert (task.score_name, task.validate(Red())) == ("agreement", 100.0)


class RedBelow(Red):
    """The same answers, but always the last one from a limit on."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        high = (x[:, 0, 0, 0] * 0.5 + 0.5) * 255 > self.limit
        return torch.where(high[:, None], torch.tensor([0.0, 0.0, 0.0, 1.0]), super().forward(x))


def test_a_plan_is_scored_on_validation_and_training_images_where_the_answers_are_the_labels(tmp_path: Path) -> None:
    """40 images, of which 12 are for the test. From image 17 on, only the answer 3 is right."""
    splits = answered(Red(), load_unlabelled(photos(tmp_path / "photos", 40), DECLARED, seed=0))
    task = Classification(splits, FinetuneSettings(), 0)
    right = {}
    for name, images in (("train", splits.train), ("validation", splits.validation)):
        answers = images.labels[images.indices].tolist()
        right[name] = [number < 17 or answer == 3 for number, answer in zip(numbers(images), answers, strict=True)]
    both = right["train"] + right["validation"]

    assert len(both) == 28
    assert task.score(RedBelow(16.5)) == pytest.approx(100 * sum(both) / 28)
    assert task.validate(RedBelow(16.5)) == pytest.approx(100 * sum(right["validation"]) / 8)


def test_unlabelled_images_join_the_training_images_where_no_label_is_needed(image_folder: ImageFolder, tmp_path: Path) -> None:
    splits = with_unlabelled(load_folder(image_folder(train=10, test=2), DECLARED, 0), photos(tmp_path / "photos", 13))
    task = Classification(splits, FinetuneSettings(), 0)
    statistics = task.distillation_images(1000)

    assert statistics is not None
    assert (len(splits.train), len(splits.pictures), len(statistics)) == (18, 31, 31)
    assert numbers(replace(splits.pictures, indices=splits.pictures.indices[18:])) == list(range(13))
    assert [sum(len(labels) for _, labels in task.calibration(labelled=only)) for only in (False, True)] == [31, 18]
    assert len(task.inputs(100)) == 31
    assert task.score_name == "accuracy"


def test_a_batch_of_both_kinds_keeps_the_order_of_its_images(image_folder: ImageFolder, tmp_path: Path) -> None:
    splits = with_unlabelled(load_folder(image_folder(train=10, test=2), DECLARED, 0), photos(tmp_path / "photos", 13))
    pictures = splits.pictures
    mixed = pictures.indices[torch.randperm(31, generator=torch.Generator().manual_seed(0))]
    alone = torch.cat([pictures.fetch(index[None]) for index in mixed])

    assert torch.equal(pictures.fetch(mixed), alone)


def test_pixels_are_normalised_where_the_labelled_images_already_are(tmp_path: Path) -> None:
    """A data set in Python gives floats that are ready for the network."""
    ready = Images(lambda chosen: torch.zeros(len(chosen), 3, 8, 8), torch.zeros(4, dtype=torch.long), torch.arange(4), DECLARED)
    splits = load_unlabelled(photos(tmp_path / "photos", 20), DECLARED, 0)
    joined = ready.joined(replace(splits.train, indices=torch.arange(20)))

    assert numbers(joined) == [128] * 4 + list(range(20))


@pytest.mark.parametrize(
    ("count", "size", "kind", "said"),
    [
        (0, 8, EmptyData, "photos: contains no images; add some"),
        (9, 8, EmptyData, "photos: 9 images; give at least 10"),
        (20, 9, ImageMismatch, "9x9 pixels, but the network takes 8x8"),
    ],
)
def test_a_folder_that_nothing_can_be_learned_from_is_refused(
    tmp_path: Path, count: int, size: int, kind: type[DataError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        load_unlabelled(photos(tmp_path / "photos", count, size), DECLARED, 0)


def test_a_folder_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: not a folder; give --unlabelled a folder of images"):
        load_unlabelled(tmp_path / "nowhere", DECLARED, 0)


@pytest.mark.parametrize(
    ("model", "advice"), [("torchvision.models:resnet18", "torchvision:resnet18 declares its own"), ("nets.py:make", "")]
)
def test_where_the_normalisation_is_not_declared_the_advice_fits_the_network(model: str, advice: str, tmp_path: Path) -> None:
    job = Job("local", model, data="none", unlabelled=photos(tmp_path / "photos", 12))

    with pytest.raises(DataError, match="a PREPROCESSING beside the factory") as refused:
        load_splits(job, None, None)

    assert str(refused.value).endswith(advice or "factory")


MEANS = """
from torch import nn
PREPROCESSING = {"size": 8, "resize": 8, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
def make():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
"""


def test_a_second_folder_joins_a_data_set_without_labels(tmp_path: Path) -> None:
    """Of 20 images, 10 are for training. Another folder has 13 more."""
    (tmp_path / "nets.py").write_text(MEANS)
    data, more = photos(tmp_path / "data", 20), photos(tmp_path / "more", 13)
    job = Job("local", f"{tmp_path / 'nets.py'}:make", data=str(data), unlabelled=more)
    task = load_model_and_task(job, load_profile("local")).task

    assert isinstance(task, Classification)
    assert (len(task.splits.train), len(task.splits.pictures)) == (10, 23)
    assert task.score_name == "agreement"


def test_images_are_not_added_to_arrays(tmp_path: Path) -> None:
    job = Job("local", "nets.py:make", data="x.npy", unlabelled=photos(tmp_path / "more", 13))

    with pytest.raises(DataError, match="images cannot be added to arrays"):
        load_splits(job, None, None)
