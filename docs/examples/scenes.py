"""Scenes: textured shapes on a cluttered background, with boxes and masks. A seed always gives the same scenes."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BATCH", "CLASSES", "PREPROCESSING", "Scenes", "make_scenes", "shuffled"]

CLASSES = ("disc", "square", "triangle", "cross")
PREPROCESSING = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

BATCH = 32
"""Pictures per training step."""

MOST_OBJECTS = 5
MOST_COVERED = 0.2
"""Largest share of an object that other objects may cover."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scenes:
    """Pictures with their objects."""

    pixels: Tensor
    """(N, 3, size, size), uint8."""
    masks: Tensor
    """(N, size, size), uint8: 0 for the background, 1 + class for an object."""
    boxes: tuple[Tensor, ...]
    """Per picture (objects, 4): left, top, right, bottom, in pixels."""
    labels: tuple[Tensor, ...]
    """Per picture (objects,): indices into CLASSES."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.pixels.shape[-1]

    def images(self, chosen: slice | Tensor = slice(None)) -> Tensor:
        """Return pictures as a network takes them, (n, 3, size, size), float32."""
        return (self.pixels[chosen].float() / 255 - PREPROCESSING["mean"][0]) / PREPROCESSING["std"][0]


def shuffled(count: int, epochs: int, seed: int) -> list[Tensor]:
    """Return the indices of `count` pictures in batches, in another order in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    return [batch for _ in range(epochs) for batch in torch.randperm(count, generator=generator).split(BATCH)]


def make_scenes(count: int, size: int, seed: int) -> Scenes:
    """Draw `count` scenes of `size` by `size` pixels."""
    drawn = [_Canvas(size, np.random.default_rng([seed, number])).finished() for number in range(count)]
    pixels, masks, boxes, labels = zip(*drawn, strict=True)
    return Scenes(
        torch.from_numpy(np.stack(pixels)),
        torch.from_numpy(np.stack(masks)),
        tuple(torch.tensor(each, dtype=torch.float32).reshape(-1, 4) for each in boxes),
        tuple(torch.tensor(each, dtype=torch.int64) for each in labels),
    )


class _Canvas:
    """One scene while it is drawn."""

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        self.size, self.generator = size, generator
        self.rows, self.columns = np.mgrid[:size, :size] + 0.5
        self.owners = np.zeros((size, size), dtype=np.int64)
        self.labels: list[int] = []
        self.picture = _patches(generator, size, 4, 80) + _patches(generator, size, size // 6, 40) + 128

    def finished(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[list[int]], list[int]]:
        """Draw everything. Returns pixels (3, size, size), mask (size, size), boxes and labels."""
        for _ in range(self.generator.integers(3, 8)):
            self._add_line()
        for _ in range(self.generator.integers(0, 3)):
            self._add(None)
        for _ in range(self.generator.integers(1, MOST_OBJECTS + 1)):
            self._add(int(self.generator.integers(len(CLASSES))))
        noisy = self.picture + self.generator.normal(0, 10, self.picture.shape)
        classes = np.array([0, *(1 + label for label in self.labels)], dtype=np.uint8)
        boxes = [_box(self.owners == 1 + number) for number in range(len(self.labels))]
        return noisy.clip(0, 255).astype(np.uint8), classes[self.owners], boxes, self.labels

    def _add(self, label: int | None) -> None:
        """Add an object of this class, or a ring (None), which is part of the clutter. Without a free place, add nothing."""
        for _ in range(8):
            radius = self.generator.uniform(0.11, 0.25) * self.size
            across, down = self.generator.uniform(radius, self.size - radius, size=2)
            angle = self.generator.uniform(0, 2 * np.pi)
            x, y = (self.columns - across) / radius, (self.rows - down) / radius
            u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
            inside = _is_inside(label, u, v)
            if (self.owners[inside] > 0).mean() == 0.0 or self._may_cover(inside):
                self._paint(inside, u, v)
                if label is not None:
                    self.labels.append(label)
                    self.owners[inside] = len(self.labels)
                return

    def _may_cover(self, inside: Bools) -> bool:
        covered = np.unique(self.owners[inside])
        return all(
            (self.owners[inside] == owner).sum() <= MOST_COVERED * (self.owners == owner).sum() for owner in covered if owner > 0
        )

    def _paint(self, inside: Bools, u: Floats, v: Floats) -> None:
        first, second = self.generator.uniform(0, 255, size=(2, 3, 1))
        frequency, kind = self.generator.uniform(4, 9), self.generator.integers(3)
        waves = np.sin(frequency * u[inside]) * (np.sin(frequency * v[inside]) if kind == 1 else 1.0)
        share = np.zeros_like(waves) if kind == 2 else (waves > 0).astype(np.float64)
        self.picture[:, inside] = first * share + second * (1 - share)

    def _add_line(self) -> None:
        angle, distance = self.generator.uniform(0, np.pi), self.generator.uniform(0, self.size)
        place = np.cos(angle) * self.columns + np.sin(angle) * (self.rows - self.size / 2)
        on_line = np.abs(place - distance) < self.generator.uniform(0.5, 2.0)
        self.picture[:, on_line] = self.generator.uniform(0, 255, size=(3, 1))


def _is_inside(label: int | None, u: Floats, v: Floats) -> Bools:
    """Which pixels belong to a shape. `u` and `v` are rotated coordinates in units of its radius."""
    distance, furthest = np.hypot(u, v), np.maximum(np.abs(u), np.abs(v))
    if label is None:
        return (distance < 1) & (distance > 0.7)
    shapes = (
        distance < 0.9,
        furthest < 0.75,
        (v > -0.55) & (1.75 * np.abs(u) + v < 1),
        (furthest < 0.95) & (np.minimum(np.abs(u), np.abs(v)) < 0.3),
    )
    return shapes[label]


def _patches(generator: np.random.Generator, size: int, cells: int, contrast: float) -> Floats:
    """A grid of `cells` by `cells` patches in random colours around 0, (3, size, size)."""
    side = -(-size // cells)
    colours = generator.uniform(-contrast, contrast, size=(3, cells, cells))
    patches: Floats = colours.repeat(side, axis=1).repeat(side, axis=2)[:, :size, :size]
    return patches


def _box(mask: Bools) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
