"""Image files into pixels: which formats are read, how large an image may be, and how it becomes what the network takes."""

import functools
import logging
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pipeline.core.profile import available_cores
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import CorruptImage, ImageMismatch
from pipeline.system.foreign_file import IMAGE_LIMIT_BYTES, open_foreign

__all__ = ["Decoder", "channels_of", "count_turned", "image_suffixes", "open_image", "resized_middle", "upright_size"]

logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print a line of its own beside ours
# `open_image` refuses by size itself, where Pillow would print a warning
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI"),
    *("TGA", "TIFF", "WEBP", "XBM"),
)
"""Pillow's names. EPS and PDF are programs, and WMF is drawn by the system: those that run something are left out."""
MAX_PIXELS = 2**28 // 3
"""Of one image, decoded or resized: where Pillow begins to warn of decompression bombs."""
ORIENTATION = 0x0112
"""The EXIF tag: 1 is upright, 2 to 8 are mirrored or turned, from 5 on with width and height exchanged."""
LOOKED_AT = 2000
UNREADABLE = (
    *(UnidentifiedImageError, OSError, SyntaxError, ValueError),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


@functools.cache
def image_suffixes() -> dict[str, str]:
    """Suffix in lower case, with its dot -> Pillow's name of the format, for every kind of file that is read."""
    return {suffix: kind for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """The image file at `path`, open and not yet decoded; of several frames the first.

    Raises CorruptImage for what is no image of these formats, ImageMismatch for one of more than MAX_PIXELS. The same errors
    are raised where decoding fails inside the block.
    """
    known = set(image_suffixes().values())
    if image_suffixes().get(path.suffix.lower()) != "TGA":
        known -= {"TGA"}  # it has no mark to be known by: anything else could be read as one
    try:
        with open_foreign(path, IMAGE_LIMIT_BYTES) as file, Image.open(file, formats=sorted(known & set(Image.OPEN))) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageMismatch(
                    f"{path}: {image.width}x{image.height} pixels, and at most {MAX_PIXELS / 1e6:.0f} million are decoded; make "
                    "it smaller"
                )
            yield image
    except UNREADABLE as problem:
        raise CorruptImage(f"{path}: not a readable image ({problem}); remove or replace it") from None


class Decoder:
    """Turns image files into pixels of one size; raises CorruptImage or ImageMismatch for those that do not fit."""

    def __init__(self, size: int, channels: int, preprocessing: Preprocessing) -> None:
        self.size, self.channels, self.preprocessing = size, channels, preprocessing
        self.pool = ThreadPoolExecutor(len(available_cores()))

    def file(self, path: Path) -> Tensor:
        """uint8, (C, size, size)."""
        with open_image(path) as image:
            return self.pixels(image, str(path))

    def pixels(self, image: Image.Image, where: str) -> Tensor:
        """uint8, (C, size, size), of an open image; `where` names it in complaints."""
        if image.mode[0] in "IF":
            raise ImageMismatch(
                f"{where}: more than 8 bits for a pixel (mode {image.mode}), and all above 255 would turn white; "
                "save it with 8 bits"
            )
        if channels_of(image) != self.channels and self.preprocessing.grey == "refuse":
            kinds = {1: "grey", 3: "colour"}
            raise ImageMismatch(
                f"{where}: a {kinds[channels_of(image)]} image (mode {image.mode}), and the network takes "
                f"{kinds[self.channels]} ones; convert it, or declare grey: convert in preprocessing.yaml"
            )
        if self.preprocessing.exif_orientation == "apply":
            image = ImageOps.exif_transpose(image)
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.preprocessing.resize:
            image = resized_middle(image, self.preprocessing.resize, self.size)
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


def resized_middle(image: Image.Image, resize: int, size: int, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """The middle size x size pixels of `image`, resized so that its shorter side is `resize`.

    Where the whole resized image would have more than `most_pixels`, as that of a very narrow one has, only the middle is made.
    """
    scale = resize / min(image.size)
    width, height = max(round(image.width * scale), size), max(round(image.height * scale), size)
    left, top = (width - size) // 2, (height - size) // 2
    if width * height <= most_pixels:
        return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def channels_of(image: Image.Image) -> int:
    """1 for grey, 3 for colour."""
    return 1 if image.mode in ("1", "L", "LA", "I", "I;16", "F") else 3


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height after the orientation in its EXIF data is applied."""
    return image.size[::-1] if _orientation(image) >= 5 else image.size


def count_turned(paths: list[Path]) -> tuple[int, int]:
    """How many of `paths` have EXIF data that call them mirrored or turned, and how many were looked at: LOOKED_AT at most,
    spread over all. What cannot be read is passed over.
    """
    chosen = paths[:: max(1, -(-len(paths) // LOOKED_AT))]
    return sum(map(_is_turned, chosen)), len(chosen)


def _is_turned(path: Path) -> bool:
    with suppress(CorruptImage, ImageMismatch), open_image(path) as image:
        return _orientation(image) > 1
    return False


def _orientation(image: Image.Image) -> int:
    """From the header alone; Pillow turns TIFF and AVIF itself, and would decode a whole PNG to find the tag."""
    found = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "MPO", "WEBP") else 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
