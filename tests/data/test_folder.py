"""Images from the digits and from folders: how they are split, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.image_folder import ImageFolder
from PIL import Image

from pipeline.data.decode import Decoder
from pipeline.data.folder import load_folder
from pipeline.data.images import Images, Splits, carve
from pipeline.data.preprocessing import Preprocessing
from pipeline.data.sources import load_digits
from pipeline.errors import CorruptImage, DataError, EmptyData, ImageMismatch, OneClass

RAW = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def indices(splits: Splits) -> list[set[int]]:
    return [set(part.indices.tolist()) for part in (splits.train, splits.validation, splits.test)]


def pixels(images: Images) -> torch.Tensor:
    return torch.cat([batch for batch, _ in images.batches(5)])


def names(splits: Splits) -> list[int]:
    return [len(splits.train), len(splits.validation), len(splits.test)]


# the digits


def test_the_digits_are_split_into_three_parts_that_share_nothing() -> None:
    """A fifth for testing; a fifth of the rest for validating."""
    parts = indices(load_digits(None, seed=0))

    assert [len(part) for part in parts] == [1151, 287, 359]
    assert set.union(*parts) == set(range(1797))


def test_the_seed_moves_the_validation_images_and_never_the_test_images() -> None:
    one, same, other = (indices(load_digits(None, seed)) for seed in (1, 1, 2))

    assert one == same
    assert one[1] != other[1]
    assert one[2] == other[2]


def test_carving_takes_the_same_share_of_every_class() -> None:
    """80 of class 0, 20 of class 1, 1 of class 2: a tenth of each, and the only one of its kind stays."""
    labels = torch.tensor([0] * 80 + [1] * 20 + [2])
    rest, taken = carve(labels, torch.arange(101), share=0.1, limit=1000, seed=0)

    assert torch.bincount(labels[taken], minlength=3).tolist() == [8, 2, 0]
    assert sorted(torch.cat([rest, taken]).tolist()) == list(range(101))


def test_carving_stops_at_the_limit() -> None:
    assert len(carve(torch.arange(1000) % 2, torch.arange(1000), share=0.5, limit=100, seed=0)[1]) == 100


# a folder of images


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train": 20, "test": 5}, [36, 4, 10]),  # validation is carved out of train/
        ({"train": 20, "val": 6}, [36, 4, 12]),  # val/ is the test split where there is no test/
        ({"train": 20, "val": 6, "test": 5}, [40, 12, 10]),  # all are given
        ({"flat": 50}, [60, 10, 30]),  # both are carved out of the class folders
    ],
    ids=["train-test", "train-val", "train-val-test", "flat"],
)
def test_each_layout_gives_three_splits(image_folder: ImageFolder, folders: dict[str, int], sizes: list[int]) -> None:
    splits = load_folder(image_folder(**folders), None, seed=0)

    assert names(splits) == sizes
    assert len(set.union(*indices(splits))) == sum(sizes)  # they share nothing
    assert splits.classes == ("cat", "dog")
    assert all(len(part.labels[part.indices].unique()) == 2 for part in (splits.train, splits.validation, splits.test))


def test_a_carved_test_split_is_the_same_for_every_seed_and_is_told(image_folder: ImageFolder) -> None:
    root = image_folder(flat=50)
    one, other = load_folder(root, None, seed=1), load_folder(root, None, seed=2)

    assert indices(one)[2] == indices(other)[2]
    assert indices(one)[1] != indices(other)[1]
    assert one.notices == (f"{root} has no test folder, so 30 of its images are held out as test images",)


def test_names_of_files_need_not_be_utf_8(image_folder: ImageFolder) -> None:
    root = image_folder(train=8, test=2)
    for path in sorted((root / "train").rglob("*.png")):
        path.rename(path.with_name(os.fsdecode(b"\xe9t\xe9 " + path.name.encode())))
    for folder in sorted(root.glob("*/*")):
        folder.rename(folder.with_name(os.fsdecode(folder.name.encode() + b" \xff")))

    found = load_folder(root, RAW, seed=0)

    assert len(found.classes) > 1
    assert all(name.endswith(r" \xff") for name in found.classes)
    assert found.description.isprintable()


def test_labels_belong_to_their_images(image_folder: ImageFolder) -> None:
    """Cats are dark, dogs are bright."""
    for part in (splits := load_folder(image_folder(train=20, test=5), RAW, seed=0)).train, splits.validation, splits.test:
        bright = (pixels(part).mean((1, 2, 3)) > 0.5).long()

        assert bright.tolist() == part.labels[part.indices].tolist()


def test_streamed_images_are_those_held_in_memory(image_folder: ImageFolder) -> None:
    """Above the limit nothing is kept, and every batch is decoded anew."""
    root = image_folder(train=20, test=5)
    held, streamed = load_folder(root, RAW, seed=0), load_folder(root, RAW, seed=0, memory_limit_bytes=0)

    assert torch.equal(pixels(held.train), pixels(streamed.train))
    (root / "test" / "cat" / "000.png").unlink()
    assert len(pixels(held.test)) == 10
    with pytest.raises(CorruptImage, match=r"test/cat/000\.png"):
        pixels(streamed.test)


def test_the_middle_is_cut_out_after_resizing(tmp_path: Path) -> None:
    """A 16x8 image, left half black, resized to 8 and cut to 4: columns 6 to 9 of 16, half black and half white."""
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 8:] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    cut = Decoder(4, 3, Preprocessing(size=4, resize=8)).file(tmp_path / "wide.png")

    assert cut.shape == (3, 4, 4)
    assert cut[0, 0].tolist() == [0, 0, 255, 255]


def test_grey_images_become_colour_where_that_is_declared(image_folder: ImageFolder) -> None:
    root = image_folder(train=10, test=2, mode="L")
    colour = pixels(load_folder(root, RAW.model_copy(update={"grey": "convert"}), seed=0).test)
    grey = pixels(load_folder(root, Preprocessing(mean=(0.0,), std=(1.0,)), seed=0).test)

    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))


def test_the_file_beside_the_images_wins_over_the_dict_beside_the_model(image_folder: ImageFolder) -> None:
    root = image_folder(train=10, test=2)
    (root / "preprocessing.yaml").write_text("mean: [0.5, 0.5, 0.5]\nstd: [0.5, 0.5, 0.5]\naugment: [flip]\n")
    found = load_folder(root, RAW, seed=0).train.preprocessing

    assert found == Preprocessing(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), augment=("flip",))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "size: 8\ncolour: 3",
            "yaml:2: unknown key 'colour'. Known keys: augment, exif_orientation, grey, mean, resize, size, std, width.",
        ),
        ("size: 8\nsize: 9", "yaml:2: 'size' occurs twice; keep one"),
        ("size: '8'", "yaml:1: size: input should be a valid integer (got '8'). Write for example 'size: 224'."),
        ("size: yes", "yaml:1: size: input should be a valid integer (got 'yes'). Write for example 'size: 224'."),
        (
            "size: 8\nresize: 4",
            "yaml:2: resize: must not be smaller than size, which is 8 (got 4). Write for example 'resize: 256'.",
        ),
        ("mean: [0.5, 0.5]", "yaml:1: mean: expected 1 or 3 numbers (got 2). Write for example 'mean: [0.485, 0.456, 0.406]'."),
        ("mean: [.nan]", "yaml:1: mean.0: input should be a finite number (got nan)."),
        ("std: [0.0]", "yaml:1: std: must be above zero (got [0.0]). Write for example 'std: [0.229, 0.224, 0.225]'."),
        (
            "mean: [0.5]\nstd: [0.1, 0.1, 0.1]",
            "yaml:2: std: expected as many numbers as mean, which has 1 (got [0.1, 0.1, 0.1]). "
            "Write for example 'std: [0.229, 0.224, 0.225]'.",
        ),
        ("grey: maybe", "yaml:1: grey: input should be 'refuse' or 'convert' (got 'maybe'). Write for example 'grey: convert'."),
        (
            "augment: [crop, spin]",
            "yaml:1: augment.1: input should be 'crop', 'flip', 'resized_crop', 'colour', 'mixup' or 'cutmix' (got 'spin').",
        ),
    ],
)
def test_preprocessing_yaml_is_strict(image_folder: ImageFolder, text: str, complaint: str) -> None:
    root = image_folder(train=2, test=1)
    (root / "preprocessing.yaml").write_text(text + "\n")
    with pytest.raises(DataError) as caught:
        load_folder(root, None, seed=0)

    assert str(caught.value) == str(root / "preprocessing.") + complaint


def without(folder: str):  # type: ignore[no-untyped-def]
    def remove(root: Path) -> None:
        for path in (root / folder).iterdir():
            path.unlink()
        (root / folder).rmdir()

    return remove


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def saved(name: str, array: np.ndarray):  # type: ignore[no-untyped-def,type-arg]
    return lambda root: Image.fromarray(array).save(root / name)


def bomb(root: Path) -> None:
    """The head of a bitmap that says it is a million pixels wide and as high."""
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(root / "train/cat/bomb.bmp")
    head = bytearray((root / "train/cat/bomb.bmp").read_bytes())
    head[18:26] = (1_000_000).to_bytes(4, "little") * 2
    (root / "train/cat/bomb.bmp").write_bytes(head)


@pytest.mark.parametrize(
    ("spoil", "error", "complaint"),
    [
        (without("train/dog"), OneClass, "train: only one class, 'cat'; give images of at least two"),
        (
            lambda root: empty(root / "train/dog"),
            EmptyData,
            "train/dog: contains no images; add some (.bmp, .jpeg, .jpg, .pgm, ...)",
        ),
        (
            lambda root: (empty(root / "test/dog"), empty(root / "test/cat")),
            EmptyData,
            "test: no images in any of its class folders",
        ),
        (
            lambda root: (root / "valid").mkdir() or (root / "val").mkdir(),
            DataError,
            "images: contains both val and valid; keep one",
        ),
        (lambda root: (root / "test/bird").mkdir(), DataError, "test: class 'bird' is not among the training classes"),
        (lambda root: (root / "train").rename(root / "val"), DataError, "images: contains val and test, but no train folder"),
        (lambda root: (root / "train/cat/x.png").write_bytes(b"\x89PNG"), CorruptImage, "x.png: not a readable image"),
        (lambda root: (root / "train/cat/x.tif").write_bytes(b"II*\0"), CorruptImage, "x.tif: not a readable image"),
        (bomb, CorruptImage, "bomb.bmp: not a readable image"),
        (saved("train/cat/x.png", np.zeros((9, 8, 3), np.uint8)), ImageMismatch, "x.png: 8x9 pixels where 000.png has 8x8"),
        (
            saved("train/cat/x.png", np.zeros((8, 8), np.uint8)),
            ImageMismatch,
            "x.png: mode L, but the other images have another mode",
        ),
        (
            saved("test/cat/x.png", np.zeros((8, 8), np.uint16)),
            ImageMismatch,
            "x.png: mode I;16, but the other images have another mode",
        ),
    ],
)
def test_a_folder_that_does_not_hold_what_it_should_is_refused(  # type: ignore[no-untyped-def]
    image_folder: ImageFolder, spoil, error: type[DataError], complaint: str
) -> None:
    root = image_folder(train=4, test=2)
    spoil(root)
    with pytest.raises(DataError) as caught:
        load_folder(root, None, seed=0)

    assert type(caught.value) is error
    assert str(caught.value).startswith(str(root))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("layout", [{"train": 1, "test": 4}, {"flat": 1}, {"flat": 2}])
def test_too_few_images_to_hold_any_out_are_refused(image_folder: ImageFolder, layout: dict[str, int]) -> None:
    with pytest.raises(EmptyData, match="too few to hold out validation images; add images to each class"):
        load_folder(image_folder(**layout), None, seed=0)


def test_sixteen_bit_images_are_refused_rather_than_turned_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageMismatch, match=r"deep\.png: more than 8 bits per channel \(mode I;16\)"):
        Decoder(8, 1, Preprocessing()).file(tmp_path / "deep.png")
