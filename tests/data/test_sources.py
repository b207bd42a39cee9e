"""Images from torchvision's files on disk and from a user's own factory."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pipeline.data.preprocessing import Preprocessing
from pipeline.data.sources import load_from_factory
from pipeline.errors import DataError, EmptyData, OneClass
from pipeline.training.load import load_data

# torchvision


def write_mnist(root: Path, train: int, test: int) -> np.ndarray:  # type: ignore[type-arg]
    """The four files of MNIST with random pixels; image i shows the digit i % 10."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(train + test, 28, 28), dtype=np.uint8)
    for name, part in (("train", np.arange(train)), ("t10k", np.arange(train, train + test))):
        head = struct.pack(">iiii", 0x803, len(part), 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + pixels[part].tobytes())
        head = struct.pack(">ii", 0x801, len(part))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + (part % 10).astype(np.uint8).tobytes())
    return pixels


def test_a_torchvision_data_set_is_read_from_files_on_disk(tmp_path: Path) -> None:
    """Its own test part is the test split; validation is carved out of its training part."""
    pixels = write_mnist(tmp_path, train=200, test=30)
    splits = load_data(f"torchvision:MNIST:{tmp_path}", Preprocessing(mean=(0.0,), std=(1.0,)), seed=0)
    images, labels = next(splits.test.batches(30))

    assert [len(splits.train), len(splits.validation), len(splits.test)] == [180, 20, 30]
    assert torch.equal((images[:, 0] * 255).round().byte(), torch.from_numpy(pixels[200:]))
    assert labels.tolist() == [number % 10 for number in range(200, 230)]
    assert splits.train.preprocessing.size == 28
    assert splits.description == "torchvision:MNIST: 230 images, 28x28"
    assert len(splits.classes) == 10


def test_it_is_resized_as_the_network_takes_it(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=40, test=10)
    declared = Preprocessing(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), grey="convert")

    assert next(load_data(f"torchvision:MNIST:{tmp_path}", declared, 0).test.batches(10))[0].shape == (10, 3, 8, 8)


def test_one_that_is_not_there_is_answered_with_the_command_that_fetches_it(tmp_path: Path) -> None:
    """Nothing is downloaded."""
    with pytest.raises(DataError) as caught:
        load_data(f"torchvision:CIFAR10:{tmp_path}", None, 0)

    assert str(caught.value) == (
        f"torchvision:CIFAR10: not found under {tmp_path} (Dataset not found or corrupted. You can use download=True to "
        f"download it); download it once with: python -c \"import torchvision; torchvision.datasets.CIFAR10('{tmp_path}', "
        'download=True)"'
    )
    assert list(tmp_path.iterdir()) == []


def test_a_torn_file_is_told_like_a_missing_one(tmp_path: Path) -> None:
    write_mnist(tmp_path, train=40, test=10)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"torchvision:MNIST: not found under .*download it once with"):
        load_data(f"torchvision:MNIST:{tmp_path}", None, 0)


# a name that is none, a module, one that needs more than a root, one without a train and a test part
@pytest.mark.parametrize("name", ["Nothing", "mnist", "UCF101", "PhotoTour", "FakeData", "SVHN"])
def test_a_data_set_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no data set '{name}' with a train and a test part; try CIFAR10, CIFAR100 or MNIST"):
        load_data(f"torchvision:{name}:{tmp_path}", None, 0)


# a factory

FACTORY = """
import torch
from torch.utils.data import TensorDataset

def make():
    images = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 3, 4, 4)
    labels = torch.arange(50) % 2
    return TensorDataset(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])

def fail():
    raise FileNotFoundError("no images.zip")

def leave():
    raise SystemExit("usage: ...")

number = 3
"""


def dataset(start: int, count: int, classes: int = 2) -> TensorDataset:
    """Image i is filled with the number i, and of class i % classes."""
    numbers = torch.arange(start, start + count)
    return TensorDataset(numbers.float().view(-1, 1, 1, 1).expand(count, 3, 4, 4), numbers % classes)


def shown(images: object) -> list[int]:
    """The numbers that images are filled with."""
    return [int(image.mean()) for batch, _ in images.batches(7) for image in batch]  # type: ignore[attr-defined]


def test_a_factory_in_a_file_is_called(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    splits = load_data(f"{tmp_path / 'mine.py'}:make", None, seed=0)

    assert [len(splits.train), len(splits.validation), len(splits.test)] == [36, 4, 10]
    assert shown(splits.test) == list(range(40, 50))
    assert splits.description == f"{tmp_path / 'mine.py'}:make: 50 images, 3x4x4"


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda train, validation, test: (train, test), [36, 4, 10]),
        (lambda train, validation, test: [train, validation, test], [40, 8, 10]),
        (lambda train, validation, test: {"test": test, "train": train}, [36, 4, 10]),
        (lambda train, validation, test: {"train": train, "val": validation, "test": test}, [40, 8, 10]),
        (lambda train, validation, test: {"train": train, "validation": validation, "test": test}, [40, 8, 10]),
        (lambda train, validation, test: tuple(DataLoader(part, 4) for part in (train, validation, test)), [40, 8, 10]),
    ],
    ids=["two", "three", "mapping of two", "val", "validation", "loaders"],
)
def test_each_form_of_answer_gives_three_splits(make: Callable[..., object], sizes: list[int]) -> None:
    """Training images show 0 to 39, validation images 40 to 47, test images 48 to 57."""
    splits = load_from_factory(make(dataset(0, 40), dataset(40, 8), dataset(48, 10)), "mine", None, seed=0)
    numbers = [shown(part) for part in (splits.train, splits.validation, splits.test)]

    assert [len(part) for part in numbers] == sizes
    assert numbers[2] == list(range(48, 58))
    assert sorted(numbers[0] + numbers[1]) == list(range(40 if sizes[0] == 36 else 48))
    assert all(
        part.labels[part.indices].tolist() == [number % 2 for number in shown(part)] for part in (splits.train, splits.test)
    )


def test_images_of_a_factory_are_taken_as_they_are() -> None:
    """They are prepared as the network takes them: neither normalised nor augmented here."""
    declared = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1), augment=("crop", "flip"))
    splits = load_from_factory((dataset(0, 40), dataset(40, 10)), "mine", declared, seed=0)
    images = torch.cat([batch for batch, _ in splits.train.training_batches(8, seed=0, epoch=0)])

    assert sorted(images.mean((1, 2, 3)).int().tolist()) == sorted(splits.train.indices.tolist())


class Turned(Dataset[tuple[torch.Tensor, int]]):
    """A data set whose `targets` are from before its target_transform, as torchvision's are."""

    targets = (0, 1) * 10
    target_transform = staticmethod(lambda label: 1 - label)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.zeros(3, 4, 4), self.target_transform(self.targets[index])


def test_labels_are_those_that_items_have() -> None:
    splits = load_from_factory((Turned(), dataset(0, 10)), "mine", None, seed=0)

    assert splits.train.labels[:4].tolist() == [1, 0, 1, 0]


class Broken(Turned):
    """A data set that cannot read its images."""

    target_transform = None  # type: ignore[assignment]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        raise FileNotFoundError("image.jpg")


class Endless(IterableDataset[int]):
    """A stream, which cannot be shuffled here."""

    def __iter__(self) -> Iterator[int]:
        return iter(())


class Short(Turned):
    """A data set with fewer targets than images."""

    targets = (0, 1)
    target_transform = None  # type: ignore[assignment]


def images_of(shape: tuple[int, ...], count: int = 20) -> TensorDataset:
    return TensorDataset(torch.zeros(count, *shape), torch.arange(count) % 2)


TEST = dataset(0, 10)


@pytest.mark.parametrize(
    ("made", "error", "complaint"),
    [
        (None, DataError, "mine: returned NoneType; expected (train, test) or (train, validation, test)"),
        ((TEST,), DataError, "mine: returned tuple; expected (train, test) or (train, validation, test)"),
        ({"train": TEST}, DataError, "mine: returned dict; expected (train, test) or (train, validation, test)"),
        ({"train": TEST, "test": TEST, "dev": TEST}, DataError, "mine: returned dict; expected (train, test)"),
        ((Endless(), TEST), DataError, "mine: train is a Endless; expected a Dataset with a length, or a loader of one"),
        ((TEST, iter([])), DataError, "mine: test is a list_iterator; expected a Dataset with a length"),
        ((dataset(0, 0), TEST), EmptyData, "mine: train contains no images"),
        ((dataset(0, 20, 1), dataset(0, 10, 1)), OneClass, "mine: all labels are 0; give images of at least two classes"),
        ((["cat", "dog"], TEST), DataError, "mine: items must be (tensor, label) pairs"),
        ((TensorDataset(torch.zeros(20, 3, 4, 4)), TEST), DataError, "mine: items must be (tensor, label) pairs"),
        (
            (TensorDataset(torch.zeros(20, 3, 4, 4), torch.arange(20) - 1), TEST),
            DataError,
            "smallest label -1; each image needs a label",
        ),
        ((Short(), TEST), DataError, "mine: 2 labels for 20 images"),
        (([(np.zeros((3, 4, 4)), 0), (np.zeros((3, 4, 4)), 1)] * 10, TEST), DataError, "(got ndarray); add a transform"),
        ((images_of((4, 4)), TEST), DataError, "mine: images must be tensors of (C, H, W)"),
        ((Broken(), TEST), DataError, "mine: an image cannot be read: FileNotFoundError: image.jpg"),
    ],
)
def test_an_answer_of_another_kind_is_refused(made: object, error: type[DataError], complaint: str) -> None:
    with pytest.raises(DataError) as caught:
        load_from_factory(made, "mine", None, seed=0)

    assert type(caught.value) is error
    assert complaint in str(caught.value)


def test_images_that_differ_in_size_are_refused_when_they_meet() -> None:
    splits = load_from_factory((images_of((3, 4, 4)), images_of((3, 5, 5))), "mine", None, seed=0)
    with pytest.raises(DataError, match="mine: images have different sizes; add a transform that resizes them"):
        splits.train.fetch(torch.tensor([0, 20]))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("{file}:nothing", "{file}: no function 'nothing' in this file or module; give --data file.py:factory"),
        ("{file}:number", "{file}: no function 'number' in this file or module; give --data file.py:factory"),
        ("{file}:fail", "{file}:fail: the factory failed with FileNotFoundError: no images.zip (at {file}:"),
        ("{file}:leave", "{file}:leave: the factory failed with SystemExit: usage: ..."),
        ("{folder}/none.py:make", "{folder}/none.py: no such file; give file.py:factory"),
        ("{folder}/odd.py:make", "{folder}/odd.py: cannot be imported: SyntaxError: '(' was never closed (at {folder}/odd.py:1)"),
        ("{folder}/exits.py:make", "{folder}/exits.py: cannot be imported: SystemExit: 2 (at {folder}/exits.py:1)"),
        ("{folder}/none", "unknown data '{folder}/none'; give a folder of images, FILE.npy, FILE.npz, torchvision:<name>"),
    ],
)
def test_a_spec_that_leads_nowhere_is_refused(tmp_path: Path, spec: str, complaint: str) -> None:
    for name, text in (("mine.py", FACTORY), ("odd.py", "make = ("), ("exits.py", "raise SystemExit(2)")):
        (tmp_path / name).write_text(text)
    where = {"file": tmp_path / "mine.py", "folder": tmp_path}
    with pytest.raises(DataError) as caught:
        load_data(spec.format(**where), None, 0)

    assert str(caught.value).startswith(complaint.format(**where))
