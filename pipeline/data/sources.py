"""Other sources of images: the bundled digits, torchvision, and a user's factory."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.core.batch import arrays_in
from pipeline.core.progress import Progress, no_progress
from pipeline.data.bounded_cache import BoundedCache
from pipeline.data.decode import Decoder
from pipeline.data.folder import MEMORY_LIMIT_BYTES, VALIDATION_LIMIT, VALIDATION_SHARE, memory_fetch
from pipeline.data.images import Fetch, Splits, carve
from pipeline.data.originals import Originals
from pipeline.data.preprocessing import Preprocessing
from pipeline.errors import DataError, EmptyData, OneClass, one_line

__all__ = ["load_digits", "load_from_factory", "load_torchvision"]

DIGITS_TEST_SHARE = 0.2
LABELS_PER_REPORT = 50


def load_digits(declared: Preprocessing | None, seed: int) -> Splits:
    """Load the 1,797 grey 8x8 handwritten digits of scikit-learn. A fifth of them, always the same, is for testing."""
    from sklearn import datasets  # noqa: PLC0415  (its import takes a second, and only the demo needs it)

    bunch = datasets.load_digits()
    pixels = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    rest, test = carve(labels, torch.arange(len(labels)), DIGITS_TEST_SHARE, len(labels), seed=0)
    train, validation = carve(labels, rest, 2 * VALIDATION_SHARE, VALIDATION_LIMIT, seed)
    preprocessing = declared or Preprocessing(size=8, mean=(0.305,), std=(0.376,), augment=("crop",))
    classes = [str(name) for name in bunch.target_names]
    description = f"digits: {len(labels)} images, 10 classes, 8x8x1"
    return Splits.of(memory_fetch(pixels), labels, (train, validation, test), preprocessing, classes, description)


def load_torchvision(name: str, root: Path, declared: Preprocessing | None, seed: int) -> Splits:
    """Load `torchvision.datasets.<name>` from files that are already in `root`; it must accept `root` and `train`.

    Nothing is downloaded, and only the user unpacks archives.
    """
    import torchvision  # noqa: PLC0415 - it takes seconds to import

    factory: Any = getattr(torchvision.datasets, name, None)
    if not _takes_root_and_train(factory):
        raise DataError(f"torchvision has no data set '{name}' with a train and a test part; try CIFAR10, CIFAR100 or MNIST")
    try:
        parts: list[Any] = [factory(root=str(root), train=train, download=False) for train in (True, False)]
    except Exception as problem:
        raise DataError(
            f"torchvision:{name}: not found under {root} ({one_line(problem, 80)}); download it once with: python -c "
            f"\"import torchvision; torchvision.datasets.{name}('{root}', download=True)\""
        ) from None
    labels = torch.cat([_labels(part, f"torchvision:{name}") for part in parts])
    first = parts[0][0][0]
    preprocessing = declared or Preprocessing()
    size = preprocessing.size or min(first.size)
    decoder = Decoder(size, preprocessing.channels or (1 if first.mode == "L" else 3), preprocessing)
    items: Dataset[Any] = torch.utils.data.ConcatDataset(parts)

    def originals(indices: Sequence[int]) -> Iterator[Image.Image]:
        return (decoder.original(cast(Image.Image, items[index][0]), f"{name}[{index}]") for index in indices)

    def read(indices: Sequence[int]) -> torch.Tensor:
        images = (decoder.pixels(cast(Image.Image, items[index][0]), f"{name}[{index}]") for index in indices)
        return decoder.gathered(len(indices), images)

    if len(labels) * decoder.channels * decoder.size * decoder.width <= MEMORY_LIMIT_BYTES:
        fetch: Fetch = memory_fetch(read(range(len(labels))))
    else:
        fetch = BoundedCache(read, MEMORY_LIMIT_BYTES, user_data=parts)
    everything, test = torch.arange(len(labels)).split([len(part) for part in parts])
    train, validation = carve(labels, everything, VALIDATION_SHARE, VALIDATION_LIMIT, seed)
    preprocessing = preprocessing.model_copy(update={"size": size})
    classes = [str(entry) for entry in getattr(parts[0], "classes", range(int(labels.max()) + 1))]
    description = f"torchvision:{name}: {len(labels)} images, {size}x{decoder.width}"
    splits = Splits.of(fetch, labels, (train, validation, test), preprocessing, classes, description)
    return splits.with_originals(Originals(originals, parts))


def _takes_root_and_train(factory: object) -> bool:
    if not inspect.isclass(factory):
        return False
    try:
        names = inspect.signature(factory).bind(root="", train=True, download=False).arguments
    except TypeError:
        return False
    return {"root", "train"} <= set(names)


def load_from_factory(
    made: object, where: str, declared: Preprocessing | None, seed: int, progress: Progress = no_progress
) -> Splits:
    """Load what a user's factory returned: (train, test) or (train, validation, test), or a mapping with these names.

    Each part is a Dataset, or a DataLoader around one, of (float tensor (C, H, W), int label) pairs that are ready for the
    network. Augmentation is up to the data set. A data set without `targets` is read once for its labels, and `progress` counts
    them. Images are kept in memory up to a limit, except those of training, which the data set may augment.
    """
    parts = _parts(made, where)
    datasets = {name: part.dataset if isinstance(part, DataLoader) else part for name, part in parts.items()}
    everything = [datasets[name] for name in ("train", "validation", "test") if name in datasets]
    for name, dataset in datasets.items():
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{where}: {name} is a {type(dataset).__name__}; expected a Dataset with a length, or a loader of one"
            )
        if len(cast(Any, dataset)) == 0:
            raise EmptyData(f"{where}: {name} contains no images")
    labels = torch.cat([_labels(dataset, where, progress) for dataset in everything])
    if len(labels.unique()) < 2:
        raise OneClass(f"{where}: all labels are {int(labels[0])}; give images of at least two classes")
    spans = dict(
        zip(
            (name for name in ("train", "validation", "test") if name in datasets),
            torch.arange(len(labels)).split([len(cast(Any, dataset)) for dataset in everything]),
            strict=True,
        )
    )
    train, validation = spans["train"], spans.get("validation")
    if validation is None:
        train, validation = carve(labels, train, VALIDATION_SHARE, VALIDATION_LIMIT, seed)
    read = _dataset_fetch(torch.utils.data.ConcatDataset(everything), where)
    learned = set(train.tolist())
    fetch = BoundedCache(
        lambda indices: read(torch.tensor(indices)), MEMORY_LIMIT_BYTES, lambda index: index not in learned, everything
    )
    shape = tuple(arrays_in(read(torch.tensor([0])))[0].shape[1:])
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    description = f"{where}: {len(labels)} images, {'x'.join(str(side) for side in shape)}"
    return Splits.of(fetch, labels, (train, validation, spans["test"]), declared or Preprocessing(), classes, description)


def _parts(made: object, where: str) -> dict[str, Any]:
    if isinstance(made, Mapping):
        parts = {{"val": "validation", "valid": "validation"}.get(str(name), str(name)): part for name, part in made.items()}
    elif isinstance(made, tuple | list) and len(made) in (2, 3):
        parts = dict(zip(("train", "test") if len(made) == 2 else ("train", "validation", "test"), made, strict=True))
    else:
        parts = {}
    if not {"train", "test"} <= set(parts) or set(parts) - {"train", "validation", "test"}:
        raise DataError(f"{where}: returned {type(made).__name__}; expected (train, test) or (train, validation, test)")
    return parts


def _labels(dataset: Any, where: str, progress: Progress = no_progress) -> torch.Tensor:
    try:
        targets = None if getattr(dataset, "target_transform", None) else getattr(dataset, "targets", None)
        found = targets if targets is not None else _labels_of_items(dataset, progress)
        labels = torch.tensor([int(label) for label in found])
    except Exception as problem:
        raise DataError(f"{where}: items must be (tensor, label) pairs ({one_line(problem, 120)})") from None
    if len(labels) != len(dataset) or labels.min() < 0:
        raise DataError(
            f"{where}: {len(labels)} labels for {len(dataset)} images, smallest label {labels.min()}; each image needs a "
            "label, counted from 0"
        )
    return labels


def _labels_of_items(dataset: Any, progress: Progress) -> Iterator[Any]:
    for index in range(len(dataset)):
        if index % LABELS_PER_REPORT == 0:
            progress(index, len(dataset), f"reading labels, item {index:,} of {len(dataset):,}")
        yield dataset[index][1]


def _dataset_fetch(dataset: Dataset[Any], where: str) -> Callable[[torch.Tensor], torch.Tensor]:
    def fetch(indices: torch.Tensor) -> torch.Tensor:
        try:
            items = [dataset[index][0] for index in indices.tolist()]
        except Exception as problem:
            raise DataError(f"{where}: an image cannot be read: {type(problem).__name__}: {one_line(problem, 120)}") from None
        if not all(isinstance(item, torch.Tensor) and item.dim() == 3 for item in items):
            raise DataError(f"{where}: images must be tensors of (C, H, W) (got {type(items[0]).__name__}); add a transform")
        if len({item.shape for item in items}) > 1:
            raise DataError(f"{where}: images have different sizes; add a transform that resizes them")
        return torch.stack(items)

    return fetch
