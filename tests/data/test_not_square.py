"""Inputs that are not square, such as lines of text."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from pipeline.data.decode import Decoder, resized_middle
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.unlabelled import load_unlabelled
from pipeline.errors import ImageMismatch

DECLARED = Preprocessing(size=12, width=48, resize=12, mean=(0.5,) * 3, std=(0.5,) * 3)


def picture(path: Path, width: int, height: int) -> Path:
    """Red grows from left to right, and green from top to bottom."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(("width", "height"), [(48, 12), (96, 24), (400, 30), (60, 90), (48, 11)])
def test_an_image_covers_the_input_and_its_middle_is_taken(tmp_path: Path, width: int, height: int) -> None:
    pixels = Decoder(12, 3, DECLARED).file(picture(tmp_path / "x.png", width, height))
    left, right = (float(pixels[0, :, column].float().mean()) for column in (0, -1))
    top, bottom = (float(pixels[1, row].float().mean()) for row in (0, -1))

    assert tuple(pixels.shape) == (3, 12, 48)
    assert left + right == pytest.approx(255, abs=16)
    assert top + bottom == pytest.approx(255, abs=30)
    assert right - left > 200 or bottom - top > 200  # one side is kept whole


def test_a_square_input_is_cut_as_before() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8))

    assert resized_middle(image, 16, 12, input_width=12).tobytes() == resized_middle(image, 16, 12).tobytes()


def test_an_image_of_another_shape_is_refused_without_a_resize(tmp_path: Path) -> None:
    with pytest.raises(ImageMismatch, match="12x48 pixels, but the network takes 48x12"):
        Decoder(12, 3, DECLARED.model_copy(update={"resize": None})).file(picture(tmp_path / "x.png", 12, 48))


def test_a_folder_is_read_in_the_declared_shape(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / f"{number}.png", 50 + number, 20)
    splits = load_unlabelled(tmp_path, DECLARED, seed=0)

    assert next(splits.train.batches(4))[0].shape[1:] == (3, 12, 48)
    assert "12x48x3" in splits.description


def test_a_width_needs_a_height() -> None:
    with pytest.raises(ValidationError, match="needs size, which is the height"):
        Preprocessing(width=48)


def test_the_facts_of_a_square_input_are_those_of_older_runs() -> None:
    assert "width" not in Preprocessing(size=8).facts()
    assert DECLARED.facts()["width"] == 48
