"""Decodes image files: which formats are read, how large an image may be, and how it becomes an input of the network."""

import functools
import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pipeline.core.profile import available_cores
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import CorruptImage, ImageMismatch
from pipeline.system.foreign_file import IMAGE_LIMIT_BYTES, open_foreign

__all__ = ["Decoder", "channels_of", "count_turned", "image_suffixes", "open_image", "resized_middle", "upright_size"]

logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow would print its own line beside ours
# `open_image` refuses by size itself, where Pillow would print a warning
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP", "XBM"),
)
"""Pillow's names. Formats that run something are left out: EPS and PDF are programs, and the system draws WMF."""
MAX_PIXELS = 2**28 // 3
"""Most pixels of one image, decoded or resized. Pillow begins to warn of decompression bombs here."""
ORIENTATION = 0x0112
"""The EXIF tag: 1 is upright, 2 to 8 are mirrored or rotated, and from 5 on width and height are exchanged."""
LOOKED_AT = 2000
UNREADABLE = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)

Decoded = TypeVar("Decoded", Tensor, Image.Image)


@functools.cache
def image_suffixes() -> dict[str, str]:
    """Return a mapping from suffix, in lower case with its dot, to Pillow's name of the format, for every supported format."""
    return {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open the image file at `path` without decoding it. Of several frames, only the first is used.

    Raises CorruptImage for a file that is no image of these formats, and ImageMismatch for one of more than MAX_PIXELS. The same
    errors are raised where decoding fails inside the block.
    """
    known = set(image_suffixes().values())
    if image_suffixes().get(path.suffix.lower()) != "TGA":
        known -= {"TGA"}  # TGA has no magic number, so any file could be read as one
    try:
        with open_foreign(path, IMAGE_LIMIT_BYTES) as file, Image.open(file, formats=sorted(known & set(Image.OPEN))) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageMismatch(
                    f"{path}: {image.width}x{image.height} pixels, but the limit is {MAX_PIXELS / 1e6:.0f} million; "
                    "make the image smaller"
                )
            yield image
    except UNREADABLE as problem:
        raise CorruptImage(f"{path}: not a readable image ({problem}); remove or replace it") from None


class Decoder:
    """Turns image files into pixels of one size: `size` high, and as wide unless the preprocessing has a width.

    Raises CorruptImage or ImageMismatch for files that do not fit.
    """

    def __init__(self, size: int, channels: int, preprocessing: Preprocessing) -> None:
        self.size, self.channels, self.preprocessing = size, channels, preprocessing
        self.width = preprocessing.width or size

    @functools.cached_property
    def pool(self) -> ThreadPoolExecutor:
        """One thread per core."""
        return ThreadPoolExecutor(len(available_cores()))

    def __getstate__(self) -> dict[str, object]:
        """Threads stay in this process."""
        return {name: value for name, value in vars(self).items() if name != "pool"}

    def file(self, path: Path) -> Tensor:
        """Decode the file `path`; uint8, (C, size, width)."""
        with open_image(path) as image:
            return self.pixels(image, str(path))

    def original(self, image: Image.Image, where: str) -> Image.Image:
        """Decode an open image without resizing it. `where` names the image in error messages."""
        if image.mode[0] in "IF":
            raise ImageMismatch(
                f"{where}: more than 8 bits per channel (mode {image.mode}), so values above 255 would become white; save it "
                "with 8 bits"
            )
        if channels_of(image) != self.channels and self.preprocessing.grey == "refuse":
            kinds = {1: "grey", 3: "colour"}
            raise ImageMismatch(
                f"{where}: a {kinds[channels_of(image)]} image (mode {image.mode}), but the network takes "
                f"{kinds[self.channels]} images; convert it, or declare grey: convert in preprocessing.yaml"
            )
        if self.preprocessing.exif_orientation == "apply":
            image = ImageOps.exif_transpose(image)
        return image.convert("L" if self.channels == 1 else "RGB")

    def pixels(self, image: Image.Image, where: str) -> Tensor:
        """Decode an open image; uint8, (C, size, width). `where` names the image in error messages."""
        image = self.original(image, where)
        if self.preprocessing.resize:
            image = resized_middle(image, self.preprocessing.resize, self.size, input_width=self.width)
        elif image.size != (self.width, self.size):
            raise ImageMismatch(
                f"{where}: {image.width}x{image.height} pixels, but the network takes {self.width}x{self.size}; resize it, or "
                f"declare resize: {self.size} in preprocessing.yaml"
            )
        array = np.asarray(image, dtype=np.uint8)
        return torch.from_numpy(array.reshape(self.size, self.width, self.channels).copy()).permute(2, 0, 1)

    def files(self, paths: Sequence[Path]) -> Tensor:
        """Decode the files `paths`; uint8, (N, C, size, width)."""
        return self.gathered(len(paths), self._map(self.file, paths))

    def gathered(self, count: int, images: Iterable[Tensor]) -> Tensor:
        """Return `count` decoded `images` as one tensor. Each is copied as it comes, so that they are not in memory twice."""
        found = torch.empty((count, self.channels, self.size, self.width), dtype=torch.uint8)
        for place, image in enumerate(images):
            found[place] = image
        return found

    def originals(self, paths: Sequence[Path]) -> Iterator[Image.Image]:
        """Decode the files `paths` without resizing them, a few at a time, because they may be large."""
        at_once = len(available_cores())
        for start in range(0, len(paths), at_once):
            yield from self._map(self._whole, paths[start : start + at_once])

    def _whole(self, path: Path) -> Image.Image:
        with open_image(path) as image:
            return self.original(image, str(path))

    def _map(self, function: Callable[[Path], Decoded], paths: Iterable[Path]) -> Iterable[Decoded]:
        forked = multiprocessing.parent_process() is not None  # the threads of a pool do not exist in a fork
        return map(function, paths) if forked else self.pool.map(function, paths)


def resized_middle(
    image: Image.Image, resize: int, size: int, most_pixels: int = MAX_PIXELS, input_width: int | None = None
) -> Image.Image:
    """Resize `image` so that its shorter side is `resize`, and return its middle size x size pixels.

    With an `input_width`, the middle is `size` high and so wide, and the resized image covers the same box in proportion to
    `resize`. If the whole resized image would have more than `most_pixels`, as for a very thin image, only the middle is
    computed.
    """
    wide = input_width or size
    scale = max(resize / image.height, resize * (wide / size) / image.width)
    width, height = max(round(image.width * scale), wide), max(round(image.height * scale), size)
    left, top = (width - wide) // 2, (height - size) // 2
    if width * height <= most_pixels:
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + wide, top + size))
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + wide) * across, (top + size) * down)
    return image.resize((wide, size), Image.Resampling.BILINEAR, box=box)


def channels_of(image: Image.Image) -> int:
    """Return 1 for a grey image and 3 for a colour image."""
    return 1 if image.mode in ("1", "L", "LA", "I", "I;16", "F") else 3


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height after applying the orientation in the EXIF data."""
    return image.size[::-1] if _orientation(image) >= 5 else image.size


def count_turned(paths: list[Path]) -> tuple[int, int]:
    """Return how many of `paths` are mirrored or rotated by their EXIF data, and how many were checked: at most LOOKED_AT, spread
    over all. Unreadable files are skipped.
    """
    chosen = paths[:: max(1, -(-len(paths) // LOOKED_AT))]
    return sum(map(_is_turned, chosen)), len(chosen)


def _is_turned(path: Path) -> bool:
    with suppress(CorruptImage, ImageMismatch), open_image(path) as image:
        return _orientation(image) > 1
    return False


def _orientation(image: Image.Image) -> int:
    """Read the orientation from the header. Pillow rotates TIFF and AVIF itself, and would decode a whole PNG to find the tag."""
    found = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "MPO", "WEBP") else 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
