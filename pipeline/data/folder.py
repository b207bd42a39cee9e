"""A folder of images, one sub-folder per class, read with every file checked."""

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pipeline.data.images import Fetch, Splits, carve
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import CorruptImage, DataError, EmptyData, ImageMismatch, OneClass
from pipeline.foreign import IMAGE_LIMIT_BYTES, open_foreign
from pipeline.profile import available_cores
from pipeline.strict_yaml import load_yaml

__all__ = ["MEMORY_LIMIT_BYTES", "Decoder", "load_folder", "memory_fetch"]

logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print a line of its own beside ours
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
MEMORY_LIMIT_BYTES = 2 * 2**30
"""Decoded images are held in memory up to this much, and decoded batch by batch beyond."""
VALIDATION_SHARE, VALIDATION_LIMIT = 0.1, 5000
TEST_SHARE = 0.1
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Decoder:
    """Turns image files into pixels of one size; raises CorruptImage or ImageMismatch for those that do not fit."""

    def __init__(self, size: int, channels: int, preprocessing: Preprocessing) -> None:
        self.size, self.channels, self.preprocessing = size, channels, preprocessing
        self.pool = ThreadPoolExecutor(len(available_cores()))

    def file(self, path: Path) -> Tensor:
        """uint8, (C, size, size)."""
        try:
            with open_foreign(path, IMAGE_LIMIT_BYTES) as file, Image.open(file) as image:
                return self.pixels(image, str(path))
        except UNREADABLE as problem:
            raise CorruptImage(f"{path}: not a readable image ({problem}); remove or replace it") from None

    def pixels(self, image: Image.Image, where: str) -> Tensor:
        """uint8, (C, size, size), of an open image; `where` names it in complaints."""
        if image.mode[0] in "IF":
            raise ImageMismatch(
                f"{where}: more than 8 bits for a pixel (mode {image.mode}), and all above 255 would turn white; "
                "save it with 8 bits"
            )
        if _channels(image) != self.channels and self.preprocessing.grey == "refuse":
            kinds = {1: "grey", 3: "colour"}
            raise ImageMismatch(
                f"{where}: a {kinds[_channels(image)]} image (mode {image.mode}), and the network takes "
                f"{kinds[self.channels]} ones; convert it, or declare grey: convert in preprocessing.yaml"
            )
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.preprocessing.resize:
            scale = self.preprocessing.resize / min(image.size)
            wanted = (max(round(image.width * scale), self.size), max(round(image.height * scale), self.size))
            image = image.resize(wanted, Image.Resampling.BILINEAR)
            left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
            image = image.crop((left, top, left + self.size, top + self.size))
        elif image.size != (self.size, self.size):
            raise ImageMismatch(
                f"{where}: {image.width}x{image.height} pixels, and the network takes {self.size}x{self.size}; resize it, or "
                f"declare resize: {self.size} in preprocessing.yaml"
            )
        array = np.asarray(image, dtype=np.uint8)
        return torch.from_numpy(array.reshape(self.size, self.size, self.channels).copy()).permute(2, 0, 1)

    def files(self, paths: Iterable[Path]) -> Tensor:
        """uint8, (N, C, size, size)."""
        return torch.stack(list(self.pool.map(self.file, paths)))


def load_folder(root: Path, declared: Preprocessing | None, seed: int, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> Splits:
    """`root` with train/ and test/ (or val/), or with the class folders themselves.

    test/ is the test split, or val/ where there is no test/; with both, val/ validates. What is missing is carved out
    of the training images, the test split always with the same seed. Raises DataError and its kin, each naming a file.
    """
    own = root / "preprocessing.yaml"
    preprocessing = load_yaml(own, Preprocessing, DataError) if own.exists() else declared or Preprocessing()
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if folders and "train" not in folders and not set(_subfolders(root)) - set(folders):
        raise DataError(f"{root}: holds {' and '.join(folders)}, and no train; expected {root}/train/<class>/<image>.jpg")
    base = folders.get("train", root)
    classes = _classes(base)
    groups = {"train": _listing(base, classes)}
    for name in ("val", "test"):
        if name in folders and "train" in folders:
            groups[name] = _listing(folders[name], classes)
    paths = [path for files, _ in groups.values() for path in files]
    labels = torch.tensor([label for _, found in groups.values() for label in found])
    spans = dict(zip(groups, torch.arange(len(paths)).split([len(files) for files, _ in groups.values()]), strict=True))
    size, channels = _shape(paths, preprocessing)
    decoder = Decoder(size, channels, preprocessing)
    fetch = _fetch(paths, decoder, memory_limit_bytes)
    train, notices = spans["train"], []
    test = spans.get("test", spans.get("val"))
    if test is None:
        train, test = carve(labels, train, TEST_SHARE, len(train), seed=0)
        notices.append(f"{root} has no test/: {len(test)} of its images are held out as test images")
    if "test" in spans and "val" in spans:
        validation = spans["val"]
    else:
        train, validation = carve(labels, train, VALIDATION_SHARE, VALIDATION_LIMIT, seed)
    if preprocessing.size is None:
        preprocessing = preprocessing.model_copy(update={"size": size})
    description = f"{root.name}: {len(paths)} images, {len(classes)} classes, {size}x{size}x{channels}, {_digest(paths, root)}"
    return Splits.of(fetch, labels, (train, validation, test), preprocessing, classes, description, notices)


def memory_fetch(pixels: Tensor) -> Fetch:
    """Hand out rows of a tensor that is held in memory."""
    return lambda indices: pixels[indices]


def _fetch(paths: list[Path], decoder: Decoder, memory_limit_bytes: int) -> Fetch:
    if len(paths) * decoder.channels * decoder.size**2 <= memory_limit_bytes:
        return memory_fetch(decoder.files(paths))
    return lambda indices: decoder.files(paths[index] for index in indices.tolist())


def _classes(folder: Path) -> tuple[str, ...]:
    names = _subfolders(folder)
    if not names:
        raise EmptyData(f"{folder}: no class folders in it; expected {folder}/<class>/<image>.jpg")
    if len(names) == 1:
        raise OneClass(f"{folder}: only one class, '{names[0]}'; give images of at least two")
    return tuple(names)


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _listing(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    strange = sorted(set(_subfolders(folder)) - set(classes))
    if strange:
        raise DataError(f"{folder}: class '{strange[0]}' is not among the training classes; rename or remove it")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = (
            sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
            if (folder / name).is_dir()
            else []
        )
        if not found:
            raise EmptyData(
                f"{folder / name}: no images in it; add some ({', '.join(sorted(SUFFIXES)[:4])}, ...) or remove the class"
            )
        files += found
        labels += [label] * len(found)
    return files, labels


def _shape(paths: list[Path], preprocessing: Preprocessing) -> tuple[int, int]:
    """Side and channels that the network takes, from what is declared or from the images if they agree."""
    first: tuple[tuple[int, int], int] | None = None
    if preprocessing.size is not None and preprocessing.channels is not None:
        return preprocessing.size, preprocessing.channels
    for path in paths:
        try:
            with open_foreign(path, IMAGE_LIMIT_BYTES) as file, Image.open(file) as image:
                seen = (image.size, _channels(image))
        except UNREADABLE as problem:
            raise CorruptImage(f"{path}: not a readable image ({problem}); remove or replace it") from None
        first = first or seen
        if seen[0] != first[0] and preprocessing.size is None:
            raise ImageMismatch(
                f"{path}: {seen[0][0]}x{seen[0][1]} pixels where {paths[0].name} has {first[0][0]}x{first[0][1]}, and "
                "nothing says what the network takes; declare size and resize in preprocessing.yaml beside the class folders"
            )
        if seen[1] != first[1] and preprocessing.channels is None:
            raise ImageMismatch(
                f"{path}: mode {image.mode} among images of another; convert it, or declare mean, std and grey: convert in "
                "preprocessing.yaml beside the class folders"
            )
    if first is None:
        raise EmptyData("no images")
    if preprocessing.size is None and first[0][0] != first[0][1]:
        raise ImageMismatch(
            f"{paths[0]}: {first[0][0]}x{first[0][1]} pixels is not square; declare size and resize in preprocessing.yaml"
        )
    return preprocessing.size or first[0][0], preprocessing.channels or first[1]


def _channels(image: Image.Image) -> int:
    return 1 if image.mode in ("1", "L", "LA", "I", "I;16", "F") else 3


def _digest(paths: list[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(os.fsencode(f"{path.relative_to(root)} {path.stat().st_size}\n"))  # a name need not be UTF-8
    return digest.hexdigest()[:12]
