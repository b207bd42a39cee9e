"""Augment: training images are varied with torchvision's transforms. What is drawn depends only on seed, epoch and batch."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.preprocessing import Augmentation

__all__ = ["OF_EACH_IMAGE", "BatchTask", "draw", "mixed", "moved", "seeded", "varied_image"]

OF_EACH_IMAGE: tuple[Augmentation, ...] = ("resized_crop", "colour")
"""Augmentations for which each image has a seed of its own."""
OF_BATCH: tuple[Augmentation, ...] = ("mixup", "cutmix")
SHIFT = 8
"""`crop` moves an image by up to one of so many parts of its height."""
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Area and sides of a random resized crop (Szegedy et al., arXiv 1409.4842), which are torchvision's defaults."""
BRIGHTNESS, CONTRAST, SATURATION = 0.4, 0.4, 0.4
"""Largest changes of `colour`, as shares, as in ResNet's training (He et al., arXiv 1512.03385, with Krizhevsky's colours)."""
MIXUP_ALPHA, CUTMIX_ALPHA = 0.2, 1.0
"""Parameters of the Beta distributions (Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899)."""


@dataclass(frozen=True)
class BatchTask:
    """A batch of training images that is to be read, and what was drawn for it."""

    chosen: Tensor
    """(N,) of indices."""
    seed: int
    """For a data set that varies its images itself, and for mixing the batch."""
    top: Tensor | None = None
    """(N,) of rows by which `crop` moves each image up, or None."""
    left: Tensor | None = None
    mirrored: Tensor | None = None
    """(N,), which images `flip` mirrors, or None."""
    image_seeds: tuple[int, ...] | None = None
    """One for each image, for `OF_EACH_IMAGE`."""


def draw(chosen: Tensor, seed: int, kinds: tuple[Augmentation, ...], height: int | None, generator: torch.Generator) -> BatchTask:
    """Return the task to read the images `chosen`. `height`: rows of an image in pixels; None: they are no images in uint8."""
    count = len(chosen)
    if height is None:
        return BatchTask(chosen, seed)
    if set(kinds) - {"crop", "flip"}:
        _transforms()  # before workers are forked, so that none of them has to import it
    top = left = mirrored = None
    seeds: tuple[int, ...] | None = None
    if "crop" in kinds:
        top, left = (torch.randint(2 * _shift(height) + 1, (count, 1, 1, 1), generator=generator).flatten() for _ in range(2))
    if "flip" in kinds:
        mirrored = torch.rand(count, generator=generator) < 0.5
    if set(OF_EACH_IMAGE) & set(kinds):
        seeds = tuple(torch.randint(2**62, (count,), generator=generator).tolist())
    return BatchTask(chosen, seed, top, left, mirrored, seeds)


def moved(pixels: Tensor, task: BatchTask) -> Tensor:
    """Return `pixels`, uint8 (N, C, H, W), moved and mirrored as drawn in `task`.

    These are slices of tensors, as in torchvision's functions, whose import would take a second of each run.
    """
    if task.top is not None and task.left is not None:
        height, width = pixels.shape[2:]
        padded = F.pad(pixels, [_shift(height)] * 4)
        places = zip(padded, task.top.tolist(), task.left.tolist(), strict=True)
        pixels = torch.stack([image[:, top : top + height, left : left + width] for image, top, left in places])
    if task.mirrored is not None:
        pixels = torch.where(task.mirrored.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    return pixels


def varied_image(image: Image.Image | Tensor, kinds: tuple[Augmentation, ...], sides: tuple[int, int], seed: int) -> Tensor:
    """Return `image`, uint8 (C, H, W) or an image of Pillow, varied by `OF_EACH_IMAGE`; uint8, (C, *sides)."""
    v2 = _transforms()
    with seeded(seed):
        if "resized_crop" in kinds:
            image = v2.RandomResizedCrop(sides, SCALE, RATIO, antialias=True)(image)
        pixels = cast(Tensor, v2.functional.pil_to_tensor(image) if isinstance(image, Image.Image) else image)
        if "colour" in kinds:
            pixels = v2.ColorJitter(BRIGHTNESS, CONTRAST, SATURATION if len(pixels) == 3 else None)(pixels)
    return pixels


def mixed(inputs: Tensor, labels: Tensor, kinds: tuple[Augmentation, ...], classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mix floats (N, C, H, W) and their labels, (N,), by `mixup` or `cutmix`; with both, each has half of the batches.

    Returns the inputs and the shares of the classes, (N, classes). Where a label is unknown (-1), the labels stay as they are.
    """
    wanted = [kind for kind in OF_BATCH if kind in kinds]
    if not wanted or len(inputs) < 2:
        return inputs, labels
    v2 = _transforms()
    found: dict[str, Any] = {"mixup": (v2.MixUp, MIXUP_ALPHA), "cutmix": (v2.CutMix, CUTMIX_ALPHA)}
    with seeded(seed):
        transform, alpha = found[wanted[int(torch.randint(len(wanted), ()))]]
        inputs, shares = transform(alpha=alpha, num_classes=classes)(inputs, labels.clamp(min=0))
    return inputs, shares if int(labels.min()) >= 0 else labels


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the processor's generators of torch, NumPy and Python inside the block, and leave them as they were before."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _transforms() -> Any:
    """torchvision's module of transforms, which takes seconds to import."""
    from torchvision.transforms import v2  # noqa: PLC0415

    return v2


def _shift(height: int) -> int:
    return max(1, height // SHIFT)
