"""Augment: torchvision's transforms on training images, drawn by seed, epoch and batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F
from torchvision.transforms.v2 import functional

from pipeline.data.augment import draw, mixed, moved, varied_image
from pipeline.data.folder import load_folder, memory_fetch
from pipeline.data.images import Images
from pipeline.data.preprocessing import Augmentation, Preprocessing
from pipeline.training.epochs import training_loss
from pipeline.training.settings import FinetuneSettings


def drawn_pixels(count: int, side: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_crop_and_flip_are_those_of_torchvision_with_the_same_draws() -> None:
    pixels = drawn_pixels(12, 16)
    task = draw(torch.arange(12), 0, ("crop", "flip"), 16, torch.Generator().manual_seed(4))
    assert task.top is not None
    assert task.left is not None
    assert task.mirrored is not None
    places = zip(functional.pad(pixels, [2] * 4), task.top.tolist(), task.left.tolist(), task.mirrored.tolist(), strict=True)
    cut = [(functional.crop(image, top, left, 16, 16), mirror) for image, top, left, mirror in places]
    expected = torch.stack([functional.horizontal_flip(image) if mirror else image for image, mirror in cut])

    assert len({*task.top.tolist()}) > 1
    assert 0 < int(task.mirrored.sum()) < 12
    assert torch.equal(moved(pixels, task), expected)


def test_draws_of_crop_and_flip_are_those_of_earlier_versions() -> None:
    """A run that an earlier version began goes on with the same images."""
    generator = torch.Generator().manual_seed(9)
    top, left = (torch.randint(5, (7, 1, 1, 1), generator=generator) for _ in range(2))
    mirrored = torch.rand(7, generator=generator) < 0.5
    task = draw(torch.arange(7), 0, ("crop", "flip"), 16, torch.Generator().manual_seed(9))

    assert [task.top.tolist(), task.left.tolist(), task.mirrored.tolist()] == [  # type: ignore[union-attr]
        top.flatten().tolist(),
        left.flatten().tolist(),
        mirrored.tolist(),
    ]


def test_a_resized_crop_is_taken_from_the_original_image(tmp_path: Path) -> None:
    """The left and right quarters of each file are red. The middle, which is what the network sees otherwise, is black."""
    pixels = np.zeros((16, 64, 3), np.uint8)
    pixels[:, :16, 0] = pixels[:, 48:, 0] = 255
    for number in range(48):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    colours = Preprocessing(size=16, resize=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    splits = load_folder(tmp_path, colours.model_copy(update={"augment": ("resized_crop",)}), seed=0)
    red = torch.cat([batch[:, 0].amax((1, 2)) for batch, _ in splits.train.training_batches(8, 0, 0)])

    assert float(torch.cat([batch for batch, _ in splits.train.batches()]).max()) == 0
    assert 0 < int((red > 0.9).sum()) < len(red)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_changes_the_brightness_of_each_image_differently(channels: int) -> None:
    image = torch.full((channels, 8, 8), 100, dtype=torch.uint8)
    found = {int(varied_image(image, ("colour",), (8, 8), seed).float().mean()) for seed in range(6)}

    assert len(found) > 3
    assert min(found) >= 60
    assert max(found) <= 140


@pytest.mark.parametrize("kinds", [("mixup",), ("cutmix",), ("mixup", "cutmix")])
def test_labels_are_mixed_in_the_shares_of_the_pixels(kinds: tuple[Augmentation, ...]) -> None:
    """Images of class 1 are white and those of class 0 black, so the mean of a mixture is its share of class 1."""
    labels = torch.arange(8) % 2
    white = (255 * labels).to(torch.uint8).view(8, 1, 1, 1).expand(8, 3, 16, 16)
    images = Images(memory_fetch(white), labels, torch.arange(8), Preprocessing(augment=kinds))
    found = [batch for epoch in range(8) for batch in images.training_batches(8, 0, epoch)]

    for inputs, shares in found:
        torch.testing.assert_close(inputs.mean((1, 2, 3)), shares[:, 1])
        torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert len({round(share, 6) for _, shares in found for share in shares[:, 1].tolist()}) > 4


def test_images_without_labels_are_mixed_and_stay_without() -> None:
    inputs, labels = torch.rand(4, 3, 8, 8), torch.tensor([-1, 0, -1, 1])
    pixels, found = mixed(inputs, labels, ("cutmix", "mixup"), 2, seed=3)

    assert not torch.equal(pixels, inputs)
    assert torch.equal(found, labels)


def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses() -> None:
    """The network has three outputs, and there are images of two classes."""
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    share = torch.linspace(0, 1, 5)
    settings = FinetuneSettings(label_smoothing=0.1)
    losses = [F.cross_entropy(logits, torch.full((5,), label), reduction="none", label_smoothing=0.1) for label in (0, 1)]
    found = training_loss(logits, None, torch.stack([share, 1 - share], 1), settings)

    torch.testing.assert_close(found, (share * losses[0] + (1 - share) * losses[1]).mean())


def test_two_kinds_of_crop_are_refused() -> None:
    with pytest.raises(ValidationError, match="crop and resized_crop exclude each other; keep one"):
        Preprocessing(augment=("resized_crop", "crop"))
