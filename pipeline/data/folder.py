"""Reads a folder of images with one sub-folder per class, and checks every file."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.bounded_cache import BoundedCache
from pipeline.data.decode import Decoder, channels_of, count_turned, open_image, upright_size
from pipeline.data.images import Fetch, Splits, carve
from pipeline.data.listing import Skipped, class_folders, image_files, loose_images, names_below, skipped_files
from pipeline.data.originals import Originals
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import DataError, EmptyData, ImageMismatch, OneClass
from pipeline.system.strict_yaml import load_yaml

__all__ = ["MEMORY_LIMIT_BYTES", "digest_of", "fetch_files", "file_originals", "load_folder", "memory_fetch", "shape_of"]

MEMORY_LIMIT_BYTES = 2**30
"""Decoded images are kept in memory up to this size. The others are decoded batch by batch."""
VALIDATION_SHARE, VALIDATION_LIMIT = 0.1, 5000
TEST_SHARE = 0.1
"""Share of the images that are held out for the test if there is no test folder."""
FEW, TEST_SHARE_OF_FEW, VALIDATION_SHARE_OF_FEW = 1000, 0.3, 0.15
"""The shares with fewer than FEW images and no test folder; the second one is of the rest. They are larger, because the test
images alone decide how wide the interval of the result is, and a network is recovered from few images without labels.
"""
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the three splits in other tools, in any case."""


def load_folder(root: Path, declared: Preprocessing | None, seed: int, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> Splits:
    """Load `root`, which holds train/ and test/ (or val/), or the class folders themselves.

    test/ is the test split, or val/ where there is no test/. If both exist, val/ is the validation split. Missing splits are
    taken from the training images, the test split always with the same seed. The notices count files that are not read.
    Raises DataError and its subclasses; each names a file.
    """
    own = root / "preprocessing.yaml"
    preprocessing = load_yaml(own, Preprocessing, DataError) if own.exists() else declared or Preprocessing()
    skipped, notices = Skipped(), list[str]()
    folders = _split_folders(root, notices)
    base = folders.get("train", root)
    classes = _classes(base)
    groups = {"train": _listing(base, classes, skipped)}
    _refuse_empty(base, classes, groups["train"][1])
    for name in ("val", "test"):
        if name in folders:
            groups[name] = _listing(folders[name], classes, skipped)
            notices += _lacking(folders[name], classes, groups[name][1])
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
        notices.append(f"{root}: {skipped.total()} files were skipped: {kinds}")
    paths = [path for files, _ in groups.values() for path in files]
    labels = torch.tensor([label for _, found in groups.values() for label in found])
    spans = dict(zip(groups, torch.arange(len(paths)).split([len(files) for files, _ in groups.values()]), strict=True))
    size, channels = shape_of(paths, preprocessing)
    decoder = Decoder(size, channels, preprocessing)
    fetch = fetch_files(paths, decoder, memory_limit_bytes)
    train = spans["train"]
    test = spans.get("test", spans.get("val"))
    shares = TEST_SHARE, VALIDATION_SHARE
    if test is None:
        shares = (TEST_SHARE_OF_FEW, VALIDATION_SHARE_OF_FEW) if len(train) < FEW else shares
        train, test = carve(labels, train, shares[0], len(train), seed=0)
        notices.append(f"{root} has no test folder, so {len(test)} of its images are held out as test images")
    if "test" in spans and "val" in spans:
        validation = spans["val"]
    else:
        train, validation = carve(labels, train, shares[1], VALIDATION_LIMIT, seed)
    notices += _turned(paths, preprocessing)
    if preprocessing.size is None:
        preprocessing = preprocessing.model_copy(update={"size": size})
    description = (
        f"{root.name}: {len(paths)} images, {len(classes)} classes, {size}x{decoder.width}x{channels}, {digest_of(paths, root)}"
    )
    splits = Splits.of(fetch, labels, (train, validation, test), preprocessing, classes, description)
    return replace(splits.with_originals(file_originals(paths, decoder)), notices=tuple(notices))


def memory_fetch(pixels: Tensor) -> Fetch:
    """Return a function that fetches rows of a tensor in memory."""
    return lambda indices: pixels[indices]


def fetch_files(paths: list[Path], decoder: Decoder, memory_limit_bytes: int) -> Fetch:
    """Return a function that fetches the images `paths`: from memory, or from the files if they need more than the limit.

    Then the images that are read first are kept up to the limit. These are the images that score plans.
    """
    if len(paths) * decoder.channels * decoder.size * decoder.width <= memory_limit_bytes:
        return memory_fetch(decoder.files(paths))
    return BoundedCache(lambda indices: decoder.files([paths[index] for index in indices]), memory_limit_bytes)


def file_originals(paths: list[Path], decoder: Decoder) -> Originals:
    """Return the originals of the images `paths`."""
    return Originals(lambda places: decoder.originals([paths[place] for place in places]))


def _split_folders(root: Path, notices: list[str]) -> dict[str, Path]:
    """Return a mapping from 'train', 'val' and 'test' to folders; it is empty where `root` holds the class folders."""
    names = class_folders(root)
    found = {split: [name for name in names if name.lower() in words] for split, words in SPLITS.items()}
    others = [name for name in names if not any(name in known for known in found.values())]
    for known in found.values():
        if len(known) > 1:
            raise DataError(f"{root}: contains both {known[0]} and {known[1]}; keep one of them")
    folders = {split: root / known[0] for split, known in found.items() if known}
    if "train" not in folders:
        if folders and not others:
            held = " and ".join(folder.name for folder in folders.values())
            raise DataError(f"{root}: contains {held}, but no train folder; expected {root}/train/<class>/<image>.jpg")
        return {}
    if others and not class_folders(folders["train"]):
        return {}  # here train is the name of a class
    if others:
        notices.append(f"{root}: folders beside {folders['train'].name}/ were skipped: {', '.join(others[:5])}")
    for split in ("val", "test"):
        if split in folders and not class_folders(folders[split]):
            folder = folders.pop(split)
            notices.append(
                f"{folder}: contains no class folders, so its {loose_images(folder)} images have no labels and were skipped"
            )
    return folders


def _classes(folder: Path) -> tuple[str, ...]:
    names = class_folders(folder)
    if not names:
        raise EmptyData(f"{folder}: contains no class folders; expected {folder}/<class>/<image>.jpg")
    if len(names) == 1:
        raise OneClass(f"{folder}: only one class, '{names[0]}'; give images of at least two")
    return tuple(names)


def _listing(folder: Path, classes: tuple[str, ...], skipped: Skipped) -> tuple[list[Path], list[int]]:
    """Return every image of `folder` with its label. A class may have no images; the caller checks that."""
    names = class_folders(folder)
    strange = sorted(set(names) - set(classes))
    if strange:
        raise DataError(f"{folder}: class '{strange[0]}' is not among the training classes; rename or remove it")
    skipped.update(skipped_files(folder))
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name, skipped) if name in names else []
        files += found
        labels += [label] * len(found)
    return files, labels


def _refuse_empty(folder: Path, classes: tuple[str, ...], labels: list[int]) -> None:
    present = set(labels)
    for label, name in enumerate(classes):
        if label not in present:
            raise EmptyData(f"{folder / name}: contains no images; add some (.bmp, .jpeg, .jpg, .pgm, ...) or remove the class")


def _lacking(folder: Path, classes: tuple[str, ...], labels: list[int]) -> Iterator[str]:
    present = set(labels)
    lacking = [name for label, name in enumerate(classes) if label not in present]
    if len(lacking) == len(classes):
        raise EmptyData(f"{folder}: no images in any of its class folders; add some, or remove the folder")
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        yield f"{folder}: no images of class '{lacking[0]}'{more}; accuracies on this split do not cover it"


def _turned(paths: list[Path], preprocessing: Preprocessing) -> Iterator[str]:
    turned, looked_at = (0, 0) if preprocessing.exif_orientation else count_turned(paths)
    if turned:
        yield (
            f"{turned} of {looked_at} images have an EXIF orientation, which is not applied (torchvision's ImageFolder does "
            "the same); declare exif_orientation: apply in preprocessing.yaml to apply it, or ignore to hide this notice"
        )


def shape_of(paths: list[Path], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the side and channels that the network takes: as declared, or as in the images `paths` if they agree.

    Raises ImageMismatch and EmptyData.
    """
    first: tuple[tuple[int, int], int] | None = None
    if preprocessing.size is not None and preprocessing.channels is not None:
        return preprocessing.size, preprocessing.channels
    apply = preprocessing.exif_orientation == "apply"
    for path in paths:
        with open_image(path) as image:
            seen = (upright_size(image) if apply else image.size, channels_of(image))
        first = first or seen
        if seen[0] != first[0] and preprocessing.size is None:
            raise ImageMismatch(
                f"{path}: {seen[0][0]}x{seen[0][1]} pixels where {paths[0].name} has {first[0][0]}x{first[0][1]}, and the "
                "network's input size is unknown; declare size and resize in preprocessing.yaml beside the class folders"
            )
        if seen[1] != first[1] and preprocessing.channels is None:
            raise ImageMismatch(
                f"{path}: mode {image.mode}, but the other images have another mode; convert it, or declare mean, std and "
                "grey: convert in "
                "preprocessing.yaml beside the class folders"
            )
    if first is None:
        raise EmptyData("no images")
    if preprocessing.size is None and first[0][0] != first[0][1]:
        raise ImageMismatch(
            f"{paths[0]}: {first[0][0]}x{first[0][1]} pixels is not square; declare size and resize in preprocessing.yaml"
        )
    return preprocessing.size or first[0][0], preprocessing.channels or first[1]


def digest_of(paths: list[Path], root: Path) -> str:
    """Return a short digest of the names and sizes of the files `paths` below `root`."""
    digest = hashlib.sha256()
    for path, name in zip(paths, names_below(paths, root), strict=True):
        digest.update(name + f" {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]
