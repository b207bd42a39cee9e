"""Every bad input ends with the exit code of its class and one line: what, where, what was got, and what to do."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.places import DIGITS, DRY, Place, message, nothing_but_the_journal
from helpers.profiles import there
from helpers.sshd import Board, needs_sshd
from PIL import Image

from pipeline import errors
from pipeline.cli.terminal import BROKEN_PIPE
from pipeline.errors import CompressError


def without_images(root: Path) -> None:
    for path in root.rglob("*.png"):
        path.unlink()


def without_dogs(root: Path) -> None:
    (root / "train" / "dog").rename(root / "dog")


def saved(name: str, side: int) -> Callable[[Path], object]:
    return lambda root: Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(root / name)


# class, arguments, beginning of the message, end of it; {0} is the place's folder
TABLE: dict[str, tuple[type[CompressError], Callable[[Place], tuple[str, ...]], str, str]] = {
    "profile missing": (
        errors.ProfileError,
        lambda place: ("--target", str(place.folder / "none.yaml"), *DRY),
        "unknown profile '{0}/none.yaml'; give a YAML file or one of ",
        "/hw_profiles and edit it",
    ),
    "profile malformed": (
        errors.ProfileError,
        lambda place: ("--target", str(place.profile(was="cores: 4", becomes="cores: four")), *DRY),
        "{0}/board.yaml:6: device.cores: input should be a valid integer (got 'four').",
        "Write for example 'cores: 4'.",
    ),
    "threads impossible": (
        errors.ThreadsError,
        lambda place: ("--target", str(place.profile(was="threads: 4 ", becomes="threads: 8 ")), *DRY),
        "{0}/board.yaml: runtime.threads is 8, but Raspberry Pi 4 Model B (4 GB) has 4 cores;",
        "write threads: 4 or less",
    ),
    "budget of no meaning here": (
        errors.BudgetError,
        lambda place: (*DIGITS, "--budget", "latency_p50=4ms"),
        "budget: latency p50 <= 4.000 ms needs a measurement on Raspberry Pi 4 Model B (4 GB), but this run measures on this machine",
        "or use --target local if this machine is the target",
    ),
    "budget out of reach": (
        errors.UnreachableBudget,
        lambda place: (*DIGITS, "--budget", "latency_p50=0.5%"),
        "at minimum width this network needs 4.",
        "raise the limit, or start from a smaller network",
    ),
    "no such model": (
        errors.ModelError,
        lambda place: (*DIGITS, "--model", "alexnet"),
        "unknown model 'alexnet'; give FILE.onnx, file.py:factory, package.module:factory, torchvision:<name>, or one of digits,",
        "vgg19_bn",
    ),
    "weights of another network": (
        errors.WeightsError,
        lambda place: place.weights("net.safetensors", {"stem.weight": torch.ones(64, 1, 3, 3)}),
        "{0}/net.safetensors: does not match the network: the file lacks 'bn.weight' and ",
        "it may belong to another network",
    ),
    "weights that are none": (
        errors.WeightsError,
        lambda place: place.weights("net.pt", b"<html>not found</html>"),
        "{0}/net.pt: not a readable checkpoint (neither an archive nor a pickle);",
        "the file may be incomplete; save the state dict again",
    ),
    "weights that run code": (
        errors.UnsafeWeights,
        lambda place: place.weights("net.pt", torch.nn.Linear(2, 2)),
        "{0}/net.pt: contains a Python object of torch.nn.modules.linear.Linear, which can run code when it is read;",
        "/net-state.pt')`",
    ),
    "images: no such folder": (
        errors.DataError,
        lambda place: (*DIGITS, "--data", str(place.folder / "none")),
        "unknown data '{0}/none';",
        "give a folder of images, FILE.npy, FILE.npz, torchvision:<name>, file.py:factory or package.module:factory",
    ),
    "images: none": (
        errors.EmptyData,
        lambda place: place.images(without_images),
        "{0}/odd/train/cat: contains no images;",
        "add some (.bmp, .jpeg, .jpg, .pgm, ...) or remove the class",
    ),
    "images: one class": (
        errors.OneClass,
        lambda place: place.images(without_dogs),
        "{0}/odd/train: only one class, 'cat';",
        "give images of at least two",
    ),
    "images: one corrupt": (
        errors.CorruptImage,
        lambda place: place.images(lambda root: (root / "train/dog/002.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")),
        "{0}/odd/train/dog/002.png: not a readable image (",
        "remove or replace it",
    ),
    "images: grey": (
        errors.ImageMismatch,
        lambda place: place.images(mode="L"),
        "{0}/odd/train/cat/000.png: a grey image (mode L), but the network takes colour images;",
        "convert it, or declare grey: convert in preprocessing.yaml",
    ),
    "images: of two sizes": (
        errors.ImageMismatch,
        lambda place: place.images(saved("test/dog/001.png", side=9)),
        "{0}/odd/test/dog/001.png: 9x9 pixels, but the network takes 8x8;",
        "resize it, or declare resize: 8 in preprocessing.yaml",
    ),
    "network that fails": (
        errors.TraceError,
        lambda place: place.net("Torn"),
        "{0}/nets.py:Torn: the network fails on an image batch of shape (1, 3, 8, 8): no image is good enough;",
        "in a PREPROCESSING beside the factory",
    ),
    "network that looks at its input": (
        errors.TraceError,
        lambda place: place.net("Undecided"),
        "the network cannot be exported to ONNX: its code makes decisions from values of the input",
        "use tensor operations there, such as torch.where",
    ),
    "network with two outputs": (
        errors.ModelError,
        lambda place: place.net("Two"),
        "{0}/nets.py:Two: the network returns 2 tensors, but classification needs one tensor of (N, classes);",
        "or images without labels",
    ),
    "network that answers with an image": (
        errors.ModelError,
        lambda place: place.net("Map"),
        "{0}/nets.py:Map: the network returns (1, 8, 6, 6), but",
        "but classification needs one tensor of (N, classes); for another task, give --task, or images without labels",
    ),
    "network for nine classes": (
        errors.ModelError,
        lambda place: place.net("nine"),
        "{0}/nets.py:nine: the network has 9 classes, but {0}/images has 2;",
        "give the images that it was trained on",
    ),
    "network of one layer": (
        errors.NothingToPrune,
        lambda place: place.net("Linear"),
        "no layer of this network can be pruned (head: its channels are the network's output);",
        "nothing can be done for it here",
    ),
    "out below a file": (
        errors.StorageError,
        lambda place: (*DIGITS, "--out", str(place.folder / "nets.py" / "run")),
        "{0}/nets.py/run: cannot be written (Not a directory);",
        "choose another --out",
    ),
    "out is a file": (
        errors.StorageError,
        lambda place: (*DIGITS, "--out", str(place.folder / "nets.py")),
        "{0}/nets.py: cannot be written (File exists);",
        "choose another --out",
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_bad_input_ends_with_its_code_and_one_line(place: Place, case: str) -> None:
    error, arguments, beginning, end = TABLE[case]
    said = message(("--out", str(place.out), *arguments(place)), error)

    assert said.startswith(beginning.format(place.folder))
    assert said.endswith(end)
    assert nothing_but_the_journal(place.out)
    assert not list(place.folder.glob(".*"))


@needs_sshd
def test_a_device_that_is_off_ends_with_its_code_and_one_line(place: Place, tmp_path: Path) -> None:
    """nothing listens where the profile's host leads"""
    board = Board(tmp_path / "off")
    target = there(tmp_path, board)
    said = message(("--target", target, "--budget", "latency_p50=50%", "--out", str(place.out)), errors.DeviceUnreachable)

    assert said.startswith("board: cannot be reached (")
    assert said.endswith(f"check that it is on and that 'ssh -F {board.config} board true' works")
    assert nothing_but_the_journal(place.out)


def classes(root: type[CompressError] = CompressError) -> list[type[CompressError]]:
    return [root, *(each for child in root.__subclasses__() for each in classes(child))]


def test_every_class_has_its_own_exit_code() -> None:
    """None of them 0, which is success, or 2, which is click's."""
    codes = [errors.BUDGET_MISSED, *(each.exit_code for each in classes())]

    assert len(codes) == len(set(codes))
    assert not {0, 2} & set(codes)


def test_the_tree_atop_the_errors_is_the_tree_of_classes() -> None:
    """Name, code, and what is below what."""
    drawn = []
    above: list[str] = []
    for bars, name, code in re.findall(r"^    ([│ ]*[├└]──) (\w+) +(\d+) ", errors.__doc__ or "", flags=re.MULTILINE):
        above[len(bars) // 4 :] = [name]
        drawn.append((above[-2] if len(above) > 1 else "CompressError", name, int(code)))

    assert sorted(drawn) == sorted((each.__base__.__name__, each.__name__, each.exit_code) for each in classes()[1:])


def test_the_page_of_failures_lists_every_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "when-it-fails.md").read_text()
    rows = re.findall(r"^\| ([\d, to]+) \|", page, flags=re.MULTILINE)
    listed: set[int] = set()
    for row in rows:
        numbers = [int(number) for number in re.findall(r"\d+", row)]
        listed |= set(range(numbers[0], numbers[-1] + 1)) if "to" in row else set(numbers)

    assert listed == {0, 2, errors.BUDGET_MISSED, BROKEN_PIPE, *(each.exit_code for each in classes())}
