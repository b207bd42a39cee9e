"""Loader: worker processes read the same batches in the same order as one process, and what they cannot do is done here."""

import os
import random
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from helpers.image_folder import ImageFolder
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pipeline.core.compute_device import computing_on
from pipeline.core.profile import available_cores
from pipeline.data.folder import load_folder
from pipeline.data.images import Images, Splits
from pipeline.data.loader import in_worker, loading, usual_workers
from pipeline.data.preprocessing import Augmentation, Preprocessing
from pipeline.data.sources import load_from_factory
from pipeline.errors import DataError

Batches = list[tuple[torch.Tensor, torch.Tensor]]
EVERYTHING: tuple[Augmentation, ...] = ("resized_crop", "flip", "colour", "mixup", "cutmix")
FOLDER = Preprocessing(size=8, mean=(0.0,) * 3, std=(1.0,) * 3, augment=EVERYTHING)


class Drawn(Dataset[tuple[torch.Tensor, int]]):
    """Images that are varied with the generators of torch, NumPy and Python."""

    def __init__(self, fails_at: int = -1, dies_at: int = -1) -> None:
        self.fails_at, self.dies_at = fails_at, dies_at

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if index == self.fails_at:
            raise OSError("disk on fire")
        if index == self.dies_at and in_worker():
            os.kill(os.getpid(), signal.SIGKILL)
        drawn = torch.rand(()) + float(np.random.rand()) + random.random()
        return torch.full((1, 2, 2), 10.0 * index) + drawn, index % 2


class WithFile(Drawn):
    """Images beside an open file, whose position two processes would share."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file


class WithClosure(Drawn):
    """Images with a function that has no name."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = lambda image: image


def factory_splits(train: Dataset[tuple[torch.Tensor, int]]) -> Splits:
    train.targets = [index % 2 for index in range(40)]  # type: ignore[attr-defined]
    return load_from_factory((train, Drawn()), "mine.py:make", None, seed=0)


def epoch(images: Images, workers: int, notices: list[str] | None = None) -> Batches:
    with loading(workers, (notices if notices is not None else []).append):
        return list(images.training_batches(8, seed=3, epoch=1))


def alike(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_gives_the_same_augmented_images_of_a_folder(image_folder: ImageFolder, workers: int) -> None:
    train = load_folder(image_folder(train=40, test=6), FOLDER, seed=0, memory_limit_bytes=0).train
    notices: list[str] = []

    assert alike(epoch(train, workers, notices), epoch(train, 0))
    assert not notices


def test_any_number_of_workers_gives_the_same_images_of_a_data_set_that_draws() -> None:
    train = factory_splits(Drawn()).train
    alone = epoch(train, 0)

    assert alike(epoch(train, 2), alone)
    assert not alike(list(train.training_batches(8, seed=3, epoch=2)), alone)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_generators_of_training_alone(workers: int) -> None:
    """Dropout draws from torch's own generator."""
    train = factory_splits(Drawn()).train
    torch.manual_seed(5)
    before = torch.get_rng_state()
    epoch(train, workers)

    assert torch.equal(torch.get_rng_state(), before)


def test_what_workers_read_for_evaluation_is_kept(image_folder: ImageFolder) -> None:
    validation = load_folder(image_folder(train=40, test=6), FOLDER, seed=0, memory_limit_bytes=12 * 3 * 64).test
    with loading(2, [].append):
        first = list(validation.batches(2))
    assert validation.fetch.holds(validation.indices)  # type: ignore[attr-defined]
    assert alike(list(validation.batches(2)), first)  # type: ignore[arg-type]


def test_after_a_killed_worker_the_same_batches_are_read_here_and_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))  # torch waits for five seconds
    train = factory_splits(Drawn(dies_at=17)).train.subset(torch.arange(30))
    notices: list[str] = []
    with loading(2, notices.append):
        found = [list(train.training_batches(8, seed=3, epoch=1)) for _ in range(2)]

    assert all(alike(each, epoch(train, 0)) for each in found)
    assert len(notices) == 1
    assert notices[0].startswith("images are read in one process, because a process that reads them ended (")
    assert "\n" not in notices[0]


@pytest.mark.parametrize("make", [WithFile, lambda file: WithClosure()], ids=["file", "closure"])
def test_a_data_set_that_cannot_be_sent_is_read_here_and_one_line_says_so(make: Callable[[BinaryIO], Drawn]) -> None:
    notices: list[str] = []
    with Path(__file__).open("rb") as file:
        train = factory_splits(make(file)).train
        found = epoch(train, 2, notices)

    assert alike(found, epoch(train, 0))
    assert len(notices) == 1
    assert notices[0].startswith("images are read in one process, because the data set cannot be sent to other processes (")


def test_an_error_of_a_data_set_is_the_same_with_workers() -> None:
    texts = []
    for workers in (0, 2):
        train = factory_splits(Drawn(fails_at=17)).train
        with pytest.raises(DataError) as caught:
            epoch(train, workers)
        texts.append(str(caught.value))

    assert texts[0] == texts[1] == "mine.py:make: an image cannot be read: OSError: disk on fire"


def test_a_process_that_may_not_have_children_reads_by_itself() -> None:
    """Processes that score plans are such ones."""
    train = factory_splits(Drawn()).train
    process = get_context("fork").Process(target=epoch, args=(train, 2), daemon=True)
    process.start()
    process.join(60)

    assert process.exitcode == 0


def test_a_forked_process_decodes_files_after_this_one_has_decoded_some(image_folder: ImageFolder) -> None:
    """The threads of the decoder do not exist in it, so it must not wait for them. Processes that score plans are forked."""
    test = load_folder(image_folder(train=40, test=6), FOLDER, seed=0, memory_limit_bytes=0).test
    here = [batch for batch, _ in test.batches()]
    process = get_context("fork").Process(target=lambda: os._exit(int(torch.equal(next(test.batches())[0], here[0]))))
    process.start()
    process.join(60)
    process.kill()

    assert process.exitcode == 1


def test_workers_are_few_and_none_on_a_processor_or_a_single_core() -> None:
    cores = available_cores()
    with computing_on(torch.device("cuda")):
        beside_gpu = usual_workers()
        os.sched_setaffinity(0, cores[:1])
        try:
            on_one_core = usual_workers()
        finally:
            os.sched_setaffinity(0, cores)
    with computing_on(torch.device("cpu")):
        on_processor = usual_workers()

    assert (beside_gpu, on_one_core, on_processor) == (min(len(cores) - 1, 8), 0, 0)
