"""Reads a folder of images without labels, for everything that the dense network's answers suffice for."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.decode import Decoder
from pipeline.data.folder import MEMORY_LIMIT_BYTES, digest_of, fetch_files, file_originals, shape_of
from pipeline.data.images import Images, Splits
from pipeline.data.listing import Skipped, image_files
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import DataError, EmptyData
from pipeline.system.strict_yaml import load_yaml

__all__ = ["FEWEST", "load_unlabelled", "split_unlabelled", "with_unlabelled"]

FEWEST = 10
"""A data set without labels has at least this many images, because some are held out for validation and for the test."""
TEST_SHARE = 0.3
"""Share of the images that are held out for the test. They alone decide how wide the interval of the result is."""
VALIDATION_SHARE, FEW_VALIDATION, MOST_VALIDATION_SHARE = 0.1, 10, 0.2
"""Share of the images for validation, and a number that is held out if it is at most the larger share. Validation compares
outputs, not only answers, so it needs fewer images than the test.
"""
UNKNOWN = -1


def with_unlabelled(splits: Splits, root: Path) -> Splits:
    """Return `splits` with the images of the folder `root` as further training images without labels.

    They are prepared as the labelled ones. Raises DataError and its subclasses.
    """
    images, text, notices = _images(root, splits.train.preprocessing)
    return replace(splits, unlabelled=images, description=f"{splits.description}; {text}", notices=(*splits.notices, *notices))


def load_unlabelled(root: Path, declared: Preprocessing | None, seed: int) -> Splits:
    """Load the folder `root` as a data set without labels. A tenth to a fifth of the images is for validation, 0.3 for the test.

    All labels are -1 until the dense network has answered; see `answered`. The test images are always the same. Raises DataError
    and its subclasses.
    """
    own = root / "preprocessing.yaml"
    preprocessing = load_yaml(own, Preprocessing, DataError) if own.exists() else declared or Preprocessing()
    images, text, notices = _images(root, preprocessing)
    if len(images) < FEWEST:
        raise EmptyData(f"{root}: {len(images)} images; give at least {FEWEST}, because some are held out for the test")
    splits = Splits.of(images.fetch, images.labels, split_unlabelled(len(images), seed), images.preprocessing, (), text)
    return replace(splits if images.originals is None else splits.with_originals(images.originals), notices=notices)


def split_unlabelled(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the training, validation and test samples among `count`. The test samples are always the same."""
    tested = round(TEST_SHARE * count)
    validated = max(round(VALIDATION_SHARE * count), min(FEW_VALIDATION, round(MOST_VALIDATION_SHARE * count)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    test, rest = order[:tested], order[tested:]
    rest = rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))]
    return rest[validated:].sort().values, rest[:validated].sort().values, test.sort().values


def _images(root: Path, preprocessing: Preprocessing) -> tuple[Images, str, tuple[str, ...]]:
    """The images below `root`, a description, and notices."""
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give --unlabelled a folder of images")
    skipped = Skipped()
    paths = image_files(root, skipped)
    skipped.pop(".yaml", None)
    if not paths:
        raise EmptyData(f"{root}: contains no images; add some (.bmp, .jpeg, .jpg, .pgm, ...)")
    kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
    notices = (f"{root}: {skipped.total()} files were skipped: {kinds}",) if skipped else ()
    size, channels = shape_of(paths, preprocessing)
    decoder = Decoder(size, channels, preprocessing)
    fetch = fetch_files(paths, decoder, MEMORY_LIMIT_BYTES)
    labels = torch.full((len(paths),), UNKNOWN)
    if preprocessing.size is None:
        preprocessing = preprocessing.model_copy(update={"size": size})
    text = f"{root.name}: {len(paths)} images without labels, {size}x{decoder.width}x{channels}, {digest_of(paths, root)}"
    images = Images(fetch, labels, torch.arange(len(paths)), preprocessing, file_originals(paths, decoder))
    return images, text, notices
