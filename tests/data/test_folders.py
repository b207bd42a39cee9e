"""Folders of images as people have them: layouts of other tools, litter, links, formats, orientation and odd shapes."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.bounded import bounded
from helpers.image_folder import ImageFolder
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import Decoder, count_turned, image_suffixes, resized_middle
from pipeline.data.folder import load_folder
from pipeline.data.images import Splits
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import CorruptImage, DataError, ImageMismatch

RAW = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def counts(splits: Splits) -> list[int]:
    return [len(part) for part in (splits.train, splits.validation, splits.test)]


def picture(path: Path, size: tuple[int, int] = (8, 8), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


# layouts


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        (("train", "valid"), [36, 4, 12]),
        (("train", "validation", "test"), [40, 12, 10]),
        (("Train", "Val", "Test"), [40, 12, 10]),
        (("training", "testing"), [36, 4, 12]),
    ],
    ids=["valid", "validation", "capitals", "training"],
)
def test_the_names_of_other_tools_are_known(image_folder: ImageFolder, names: tuple[str, ...], sizes: list[int]) -> None:
    splits = load_folder(image_folder(**dict(zip(names, (20, 6, 5), strict=False))), None, seed=0)

    assert counts(splits) == sizes
    assert splits.notices == ()


def test_a_class_that_is_missing_among_the_test_images_is_said(image_folder: ImageFolder) -> None:
    root = image_folder(train=20, test=5)
    for path in (root / "test/dog").iterdir():
        path.unlink()
    splits = load_folder(root, None, seed=0)

    assert counts(splits) == [36, 4, 5]
    assert splits.notices == (f"{root}/test: no images of class 'dog'; accuracies on this split do not cover it",)


def test_test_images_without_labels_are_counted_and_others_are_held_out(image_folder: ImageFolder) -> None:
    root = image_folder(train=20)
    for number in range(3):
        picture(root / "test" / f"{number}.png")
    splits = load_folder(root, None, seed=0)

    assert counts(splits) == [24, 4, 12]
    assert splits.notices == (
        f"{root}/test: contains no class folders, so its 3 images have no labels and were skipped",
        f"{root} has no test folder, so 12 of its images are held out as test images",
    )


def test_folders_beside_the_splits_are_named(image_folder: ImageFolder) -> None:
    root = image_folder(train=20, test=5)
    (root / "annotations").mkdir()

    assert load_folder(root, None, seed=0).notices == (f"{root}: folders beside train/ were skipped: annotations",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "car"):
        for number in range(10):
            picture(tmp_path / "images" / name / f"{number}.png")

    assert load_folder(tmp_path / "images", None, seed=0).classes == ("bus", "car", "train")


# litter


def test_litter_is_passed_over_and_counted(image_folder: ImageFolder) -> None:
    root = image_folder(train=10, test=2)
    clean = load_folder(root, RAW, seed=0)
    for name in ("train/cat/.ipynb_checkpoints", "train/.ipynb_checkpoints", "train/__MACOSX", "train/cat/__MACOSX", "__MACOSX"):
        picture(root / name / "000-checkpoint.png")
    for name in (
        "train/cat/._000.png",
        "train/dog/Thumbs.db",
        "train/dog/desktop.ini",
        "train/dog/notes.txt",
        "train/dog/README",
    ):
        (root / name).write_bytes(b"\0")
    picture(root / "train/loose.png")
    splits = load_folder(root, RAW, seed=0)

    assert counts(splits) == counts(clean)
    assert splits.description == clean.description
    said, _, kinds = splits.notices[0].partition(" were skipped: ")
    assert said == f"{root}: 10 files"
    assert set(kinds.split(", ")) == {
        *("2 in .ipynb_checkpoints/", "2 in __MACOSX/", "1 images in no class folder", "1 hidden"),
        *("1 Thumbs.db", "1 desktop.ini", "1 .txt", "1 files without a suffix"),
    }


# links


def test_links_to_files_and_folders_are_followed_inside_the_data_and_outside(image_folder: ImageFolder, tmp_path: Path) -> None:
    root = image_folder(train=10, test=2)
    for number in range(3):
        picture(tmp_path / "elsewhere" / f"{number}.png")
    picture(root / "extra" / "x.png")
    (root / "train/cat/outside").symlink_to(tmp_path / "elsewhere")
    (root / "train/cat/inside").symlink_to(Path("../../extra"))
    (root / "train/cat/one.png").symlink_to(tmp_path / "elsewhere/0.png")
    (root / "train/bird").symlink_to(tmp_path / "elsewhere")
    splits = load_folder(root, RAW, seed=0)
    per_class = torch.bincount(torch.cat([splits.train.labels[p.indices] for p in (splits.train, splits.validation)]))

    assert splits.classes == ("bird", "cat", "dog")
    assert per_class.tolist() == [3, 15, 10]


def test_links_that_lead_back_or_nowhere_are_passed_over_and_counted(image_folder: ImageFolder) -> None:
    """A link to the folder of all classes would bring dogs in among the cats."""
    root = image_folder(train=10, test=2)
    (root / "train/cat/all").symlink_to(root / "train")
    (root / "train/cat/self").symlink_to(root / "train/cat")
    (root / "train/cat/deep").mkdir()
    (root / "train/cat/deep/up").symlink_to("..")
    (root / "train/dog/gone.png").symlink_to(root / "none.png")
    (root / "train/dog/once").mkdir()
    picture(root / "train/dog/once/x.png")
    (root / "train/dog/twice").symlink_to("once")
    splits = load_folder(root, RAW, seed=0)

    assert sum(counts(splits)) == 25
    assert splits.notices[0].startswith(f"{root}: 5 files were skipped: 3 links to a parent folder, ")
    assert "1 broken links" in splits.notices[0]
    assert "1 links to a folder that was already read" in splits.notices[0]


# formats


@pytest.mark.parametrize("suffix", ["jfif", "gif", "jpe", "apng", "pnm", "tga", "jp2", "webp", "pcx", "TIFF", "PNG"])
def test_formats_that_pillow_reads_are_read(tmp_path: Path, suffix: str) -> None:
    """A flat image survives every compression."""
    pixels = np.full((8, 8, 3), 128, np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
    found = Decoder(8, 3, Preprocessing()).file(tmp_path / f"x.{suffix}")

    assert f".{suffix}".lower() in image_suffixes()
    assert (found.int() - 128).abs().max() <= 2


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])

    assert Decoder(8, 3, Preprocessing()).file(tmp_path / "x.gif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["x.eps", "x.png"])
def test_postscript_is_never_run(tmp_path: Path, name: str) -> None:
    """Pillow reads it with Ghostscript, whatever the file is called."""
    Image.new("RGB", (8, 8)).save(tmp_path / name, format="EPS")
    with pytest.raises(CorruptImage, match="cannot identify image file"):  # and not that Ghostscript is missing
        Decoder(8, 3, Preprocessing()).file(tmp_path / name)

    assert ".eps" not in image_suffixes()


# orientation


def turned(path: Path, orientation: int, size: tuple[int, int] = (16, 16)) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(path, size, exif=exif, quality=95)


def test_turned_images_are_counted_with_the_option_that_turns_them(image_folder: ImageFolder) -> None:
    root = image_folder(train=10, test=2, size=(16, 16))
    turned(root / "train/cat/a.jpg", 6)
    turned(root / "train/cat/b.jpg", 1)
    said = load_folder(root, RAW, seed=0).notices

    assert len(said) == 1
    assert said[0].startswith("1 of 26 images have an EXIF orientation, which is not applied")
    assert "exif_orientation: apply in preprocessing.yaml" in said[0]
    for choice in ("apply", "ignore"):
        assert load_folder(root, RAW.model_copy(update={"exif_orientation": choice}), seed=0).notices == ()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_where_that_is_declared(tmp_path: Path, orientation: int) -> None:
    """As EXIF defines it, in NumPy's words; rows and columns of the stored image."""
    upright = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, 1),
    }
    path = turned(tmp_path / "x.jpg", orientation)
    stored = Decoder(16, 3, Preprocessing()).file(path).permute(1, 2, 0).numpy()
    found = Decoder(16, 3, Preprocessing(exif_orientation="apply")).file(path).permute(1, 2, 0).numpy()

    assert np.array_equal(found, upright[orientation](stored))


def test_sizes_are_compared_after_turning(tmp_path: Path) -> None:
    """A 16x8 image that is turned is 8x16, and no square."""
    for name in ("cat", "dog"):
        for number in range(4):
            turned(tmp_path / "images" / name / f"{number}.jpg", 6, size=(8, 16))
    with pytest.raises(ImageMismatch, match="16x8 pixels is not square"):
        load_folder(tmp_path / "images", RAW.model_copy(update={"exif_orientation": "apply"}), seed=0)
    with pytest.raises(ImageMismatch, match="8x16 pixels is not square"):
        load_folder(tmp_path / "images", RAW, seed=0)


def test_of_many_images_some_are_looked_at(tmp_path: Path) -> None:
    path = turned(tmp_path / "x.jpg", 3)

    assert count_turned([path] * 5) == (5, 5)
    assert count_turned([path] * 4100) == (1367, 1367)


def test_runs_from_before_the_option_are_tied_to_the_same_facts() -> None:
    assert "exif_orientation" not in RAW.facts()
    assert RAW.model_copy(update={"exif_orientation": "apply"}).facts()["exif_orientation"] == "apply"


# odd shapes


@given(width=st.integers(1, 60), height=st.integers(1, 60), resize=st.integers(8, 40), seed=st.integers(0, 5))
@settings(max_examples=60)
def test_the_middle_alone_is_the_middle_of_the_whole(width: int, height: int, resize: int, seed: int) -> None:
    """To one level of 256: Pillow keeps the corners of the middle in half the digits."""
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    whole, alone = (np.asarray(resized_middle(image, resize, 8, most)).astype(int) for most in (10**9, 0))

    assert np.abs(whole - alone).max() <= 1


NARROW = """
import sys
from pathlib import Path
from pipeline.data.decode import Decoder
from pipeline.data.preprocessing import Preprocessing
print(tuple(Decoder(224, 3, Preprocessing(size=224, resize=256)).file(Path(sys.argv[1])).shape))
"""


def test_a_very_narrow_image_is_resized_in_little_memory(tmp_path: Path) -> None:
    """1x100000 to a shorter side of 256 would be 256x25600000 pixels: 20 GB."""
    path = picture(tmp_path / "x.png", (1, 100_000))

    assert bounded(NARROW, path, megabytes=6000) == "(3, 224, 224)\n"


def test_an_image_of_too_many_pixels_is_refused_by_its_size(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "x.png")
    with pytest.raises(DataError) as caught:
        Decoder(8, 1, Preprocessing(resize=8)).file(tmp_path / "x.png")

    assert str(caught.value).startswith(f"{tmp_path}/x.png: ")
    assert "pixels" in str(caught.value)


def test_a_name_of_no_text_is_listed(image_folder: ImageFolder) -> None:
    root = image_folder(train=10, test=2)
    (root / "train/cat/000.png").rename(os.fsdecode(os.fsencode(root / "train/cat") + b"/\xe9.png"))

    assert sum(counts(load_folder(root, RAW, seed=0))) == 24
