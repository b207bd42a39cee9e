"""Images: the normalised batches of one split; for training they are shuffled and augmented."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from pipeline.core.batch import Inputs, tensors_of
from pipeline.data.augment import BatchTask, draw, mixed, moved, seeded, varied_image
from pipeline.data.joined_fetch import JoinedFetch
from pipeline.data.loader import Readable, read_batches
from pipeline.data.originals import Originals
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import EmptyData
from pipeline.foreign_text import escape_text

__all__ = ["Images", "Splits", "carve", "evaluation_size", "normalised"]

FEWEST_AT_ONCE, MOST_AT_ONCE = 4, 256
"""Smallest and largest number of images in a batch for evaluation. BatchNorm statistics need several."""
MOST_VALUES = 2**22
"""Largest number of input values in such a batch, because the features of a network take about thirty times as much memory. With
colour images, 256 fit up to 73 x 73 pixels, and 27 of 224 x 224."""

Fetch = Callable[[Tensor], Inputs]
"""Indices -> a batch: uint8 pixels, (N, C, H, W), to be normalised, or inputs that are ready for the network."""


@dataclass(frozen=True)
class Images:
    """The labelled images of one split."""

    fetch: Fetch
    labels: Tensor
    """(all images,) of class indices; `indices` selects from it."""
    indices: Tensor
    preprocessing: Preprocessing
    originals: Originals | None = None
    """Where `resized_crop` takes its part from. None: from the images of `fetch`."""

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, positions: Tensor) -> "Images":
        """Return only the images at `positions` of this split."""
        return replace(self, indices=self.indices[positions])

    def label_counts(self) -> Tensor:
        """Return the number of images of each class, (classes,)."""
        return torch.bincount(self.labels[self.indices])

    def joined(self, other: "Images") -> "Images":
        """Return these images followed by those of `other`. If these are ready for the network, the others are normalised too."""
        count = len(self.labels)
        convert = other._normalised if self._is_ready() and not other._is_ready() else None
        fetch = JoinedFetch(self.fetch, count, other.fetch, convert)
        labels, indices = torch.cat([self.labels, other.labels]), torch.cat([self.indices, other.indices + count])
        originals = self.originals and self.originals.joined(count, other.originals)
        return Images(fetch, labels, indices, self.preprocessing, originals)

    def sample(self, count: int, seed: int) -> "Images":
        """Draw `count` images without replacement; a seed always gives the same images."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:count])

    @cached_property
    def evaluation_size(self) -> int:
        """The number of images in a batch for evaluation. It is smaller for large images, so that memory is bounded."""
        return evaluation_size(self._first.numel())

    def batches(self, size: int | None = None, device: torch.device | None = None) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield (images, labels) in order, for evaluation: (N, C, H, W) float32 or a `Batch`, and (N,).

        `size` is the number of images in a batch; None: `evaluation_size`. Images are on `device`, if it is given, and labels on
        the processor.
        """
        parts = self.indices.split(self.evaluation_size if size is None else size)
        for chosen, pixels in zip(parts, read_batches(self.fetch, parts, self.fetch, self.indices), strict=True):
            if isinstance(self.fetch, Readable):
                self.fetch.keep(chosen, pixels)
            yield self._normalised(_placed(pixels, device)), self.labels[chosen]

    def training_batches(
        self, size: int, seed: int, epoch: int, device: torch.device | None = None, first: int = 0
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield shuffled and augmented batches, which depend only on the seed and the epoch. A last batch of one image is left
        out, because BatchNorm cannot learn from it.

        The batches before number `first`, counted from 0, are left out. Images are on `device`, if it is given. Labels are on the
        processor: (N,), or (N, classes) if images are mixed.
        """
        kinds, base = self.preprocessing.augment, 1_000_003 * seed + epoch
        generator = torch.Generator().manual_seed(base)
        order = self.indices[torch.randperm(len(self), generator=generator)]
        chosen = [part for part in order.split(size) if len(part) > 1 or len(self) == 1]
        height = self._first.shape[2] if kinds and isinstance(self._first, Tensor) and not self._is_ready() else None
        seeds = ((1_000_003 * base + number) % 2**62 for number in range(len(chosen)))
        tasks = [draw(part, seed, kinds, height, generator) for part, seed in zip(chosen, seeds, strict=True)][first:]
        for task, pixels in zip(tasks, read_batches(self._read, tasks, self._training_source, self.indices), strict=True):
            inputs, labels = self._normalised(_placed(pixels, device)), self.labels[task.chosen]
            if height is not None and isinstance(inputs, Tensor):
                inputs, labels = mixed(inputs, labels, kinds, int(self.labels.max()) + 1, task.seed)
            yield inputs, labels

    def _read(self, task: BatchTask) -> Inputs:
        """A training batch before it is normalised."""
        with seeded(task.seed):  # for a data set of the user that varies its images
            if task.image_seeds is None:
                pixels = self.fetch(task.chosen)
            else:
                pixels = torch.stack(list(self._varied(task.chosen, task.image_seeds)))
        return moved(pixels, task) if isinstance(pixels, Tensor) else pixels

    def _varied(self, chosen: Tensor, seeds: Sequence[int]) -> Iterator[Tensor]:
        source, (height, width) = self._training_source, tensors_of(self._first)[0].shape[2:]
        images = source.read(chosen.tolist()) if isinstance(source, Originals) else tensors_of(source(chosen))[0]
        for image, seed in zip(images, seeds, strict=True):
            yield varied_image(image, self.preprocessing.augment, (height, width), seed)

    @property
    def _training_source(self) -> Fetch | Originals:
        return self.originals if self.originals and "resized_crop" in self.preprocessing.augment else self.fetch

    @cached_property
    def _first(self) -> Inputs:
        """The first image."""
        with seeded(0):
            return self.fetch(self.indices[:1])

    def _is_ready(self) -> bool:
        """Whether the images are ready for the network, and not pixels."""
        return not isinstance(self._first, Tensor) or self._first.dtype != torch.uint8

    def _normalised(self, pixels: Inputs) -> Inputs:
        if not isinstance(pixels, Tensor):
            return pixels
        return normalised(pixels, self.preprocessing) if pixels.dtype == torch.uint8 else pixels.float()


@dataclass(frozen=True)
class Splits:
    """Training images, validation images (given or taken from the training images), and test images for the final test."""

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    description: str
    """Description of the images in words and numbers; part of a run's identity."""
    notices: tuple[str, ...] = ()
    """What the user should know about how the images were read."""
    unlabelled: Images | None = None
    """More training images. Their labels are -1."""
    labelled: bool = True
    """False: the labels are the dense network's answers, so accuracy is agreement with it."""
    input_names: tuple[str, ...] = ()
    """Names of the inputs, if there are several, or if they are no images."""

    @cached_property
    def pictures(self) -> Images:
        """All images to train with where labels are not needed: `train`, and `unlabelled` if there are any."""
        return self.train.joined(self.unlabelled) if self.unlabelled else self.train

    @classmethod
    def of(
        cls,
        fetch: Fetch,
        labels: Tensor,
        parts: tuple[Tensor, Tensor, Tensor],
        preprocessing: Preprocessing,
        classes: Sequence[str],
        description: str,
    ) -> "Splits":
        """Create splits from one pool of images. `parts` are the indices of train, validation and test. Raises EmptyData.

        `classes` and `description` often come from file names, which may hold any bytes; they are stored in a readable form.
        """
        classes, description = [escape_text(name) for name in classes], escape_text(description)
        for name, indices in zip(("training", "validation", "test"), parts, strict=True):
            if not len(indices):
                raise EmptyData(f"{description}: too few to hold out {name} images; add images to each class")
        train, validation, test = (Images(fetch, labels, indices, preprocessing) for indices in parts)
        return cls(train, validation, test, tuple(classes), description)

    def with_originals(self, originals: Originals) -> "Splits":
        """Return the same images with their `originals`."""
        train, validation, test = (replace(images, originals=originals) for images in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Splits":
        """Return the same images with another preprocessing."""
        return replace(
            self,
            train=replace(self.train, preprocessing=preprocessing),
            validation=replace(self.validation, preprocessing=preprocessing),
            test=replace(self.test, preprocessing=preprocessing),
            unlabelled=replace(self.unlabelled, preprocessing=preprocessing) if self.unlabelled else None,
        )

    def with_answers(self, answers: Tensor, classes: Sequence[str]) -> "Splits":
        """Return the same images with `answers`, (all images,) of class indices, of the dense network as their labels."""
        train, validation, test = (replace(images, labels=answers) for images in (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test, classes=tuple(classes), labelled=False)


def normalised(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return `pixels`, uint8 (N, C, H, W), as floats with the mean and standard deviation of `preprocessing`."""
    channels = pixels.shape[1]
    mean = torch.tensor(preprocessing.mean or (0.0,) * channels, device=pixels.device).view(1, -1, 1, 1)
    std = torch.tensor(preprocessing.std or (1.0,) * channels, device=pixels.device).view(1, -1, 1, 1)
    return (pixels.float() / 255 - mean) / std


def evaluation_size(values: int) -> int:
    """Return the number of images in a batch for evaluation if each image has `values` input values.

    >>> evaluation_size(3 * 32 * 32), evaluation_size(3 * 224 * 224)
    (256, 27)
    """
    return min(max(MOST_VALUES // max(values, 1), FEWEST_AT_ONCE), MOST_AT_ONCE)


def carve(labels: Tensor, indices: Tensor, share: float, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split `indices` into (the rest, a share of every class) with a seed; at least one of each class that has two is taken.

    At most about `limit` images are taken.
    """
    generator = torch.Generator().manual_seed(seed)
    share = min(share, limit / max(len(indices), 1))
    rest, taken = [], []
    counts = labels[indices].unique(return_counts=True)[1]
    for unshuffled in indices[labels[indices].argsort(stable=True)].split(counts.tolist()):
        members = unshuffled[torch.randperm(len(unshuffled), generator=generator)]
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken.append(members[:count])
        rest.append(members[count:])
    return torch.cat(rest).sort().values, torch.cat(taken).sort().values


def _placed(pixels: Inputs, device: torch.device | None) -> Inputs:
    """`pixels` on `device`. Pixels in uint8 are normalised there, because they are a quarter of the floats."""
    if device is None or device.type == "cpu":
        return pixels
    return pixels.to(device, non_blocking=True) if isinstance(pixels, Tensor) else pixels.to(device)
