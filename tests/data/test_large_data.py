"""Large data: images are kept up to a number of bytes, and a large folder is hashed without reading all of it."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.image_folder import ImageFolder
from torch.utils.data import Dataset

from pipeline.core.run import open_run
from pipeline.data.bounded_cache import BoundedCache
from pipeline.data.folder import load_folder
from pipeline.data.images import carve
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.sources import load_from_factory
from pipeline.errors import OtherJob
from pipeline.stages import input_hashes
from pipeline.stages.input_hashes import bind_input_hashes

RAW = Preprocessing(size=8, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("limit_bytes", [0, 100, 500, 10_000])
def test_a_bounded_cache_gives_the_same_images_and_stays_below_its_limit(limit_bytes: int) -> None:
    pixels = torch.randint(256, (40, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    fetch = BoundedCache(lambda places: pixels[list(places)], limit_bytes)
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        chosen = torch.randint(40, (7,), generator=generator)  # with repetitions
        assert torch.equal(fetch(chosen), pixels[chosen])

    assert sum(image.untyped_storage().nbytes() for image in fetch._kept.values()) <= limit_bytes


def test_a_folder_that_is_too_large_for_memory_is_decoded_once_as_far_as_it_fits(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds 12 images of 8x8: those that score plans are read first, and not again."""
    splits = load_folder(image_folder(train=40, test=6), RAW, seed=0, memory_limit_bytes=12 * 3 * 64)
    held = load_folder(image_folder(), RAW, seed=0)
    first = torch.cat([pixels for pixels, _ in splits.validation.batches()])
    read: list[int] = []
    decode = splits.validation.fetch._read  # type: ignore[attr-defined]
    monkeypatch.setattr(splits.validation.fetch, "_read", lambda places: read.extend(places) or decode(places))

    assert torch.equal(torch.cat([pixels for pixels, _ in splits.validation.batches()]), first)
    assert torch.equal(torch.cat([pixels for pixels, _ in held.validation.batches()]), first)
    assert not read
    assert torch.equal(*(torch.cat([pixels for pixels, _ in each.train.batches()]) for each in (splits, held)))


class Items(Dataset[Any]):
    """Items without `targets`, which remembers which of them were read."""

    def __init__(self, count: int) -> None:
        self.count, self.read = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read.append(index)
        return torch.full((1, 2, 2), float(index)), index % 2


def test_the_labels_of_a_factory_are_counted_while_they_are_read() -> None:
    told: list[tuple[int, int, str]] = []
    load_from_factory((Items(120), Items(10)), "mine", None, 0, lambda *event: told.append(event))

    assert told == [
        (0, 120, "reading labels, item 0 of 120"),
        (50, 120, "reading labels, item 50 of 120"),
        (100, 120, "reading labels, item 100 of 120"),
        (0, 10, "reading labels, item 0 of 10"),
    ]


def test_validation_items_of_a_factory_are_read_once_and_training_items_each_time() -> None:
    """A data set may change its training images each time, as augmentation does."""
    train, validation = Items(20), Items(6)
    splits = load_from_factory((train, validation, Items(6)), "mine", None, 0)
    assert (splits.train.evaluation_size, splits.validation.evaluation_size) == (256, 256)  # which reads an image of each
    for each in (train, validation):
        each.read.clear()
    for _ in range(3):
        for images in (splits.train, splits.validation):
            list(images.batches())

    assert (sorted(train.read), sorted(validation.read)) == (sorted([*range(20)] * 3), [*range(1, 6)])


def test_carving_many_classes_takes_what_a_mask_for_each_class_takes() -> None:
    labels = torch.randint(50, (2000,), generator=torch.Generator().manual_seed(0))
    indices = torch.arange(2000)[torch.randperm(2000, generator=torch.Generator().manual_seed(1))][:1500]
    generator, taken = torch.Generator().manual_seed(7), []
    for label in labels[indices].unique():
        members = indices[labels[indices] == label]
        members = members[torch.randperm(len(members), generator=generator)]
        taken.append(members[: min(max(1, round(0.1 * len(members))), len(members) - 1)])

    assert carve(labels, indices, 0.1, 10_000, seed=7)[1].tolist() == sorted(torch.cat(taken).tolist())


def test_a_large_folder_is_hashed_by_names_and_sizes_and_by_some_contents(
    image_folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 images, of which every fourth is read: another name, size or content of these is noticed."""
    root = image_folder(flat=10)
    digest = functools.partial(input_hashes._folder_digest, root, 10, 5)
    paths = sorted(root.rglob("*.png"))
    before = digest()

    assert digest() == before != input_hashes._folder_digest(root)
    data = paths[0].read_bytes()
    paths[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert digest() != before
    paths[0].write_bytes(data)
    paths[1].write_bytes(paths[1].read_bytes() + b"\0")
    assert digest() != before


def test_a_run_that_hashed_every_image_of_a_large_folder_is_continued(
    image_folder: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(flat=10)
    with open_run(tmp_path / "run", {"job": "1"}) as run:
        bind_input_hashes(run, "digits", None, str(root))  # 20 images: all of them are read, as in earlier versions
    monkeypatch.setattr(input_hashes._folder_digest, "__defaults__", (10, 5))
    monkeypatch.setattr(input_hashes.origins, "__defaults__", (10,))
    monkeypatch.setattr(input_hashes._unlabelled, "__defaults__", (10,))
    with open_run(tmp_path / "run", {"job": "1"}) as run:
        bind_input_hashes(run, "digits", None, str(root))
        (root / "cat").rename(root / "cow")
        with pytest.raises(OtherJob):
            bind_input_hashes(run, "digits", None, str(root))
