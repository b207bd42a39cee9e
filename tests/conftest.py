"""What all tests share."""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from helpers.cost import print_costs, pytest_runtest_makereport
from helpers.image_folder import ImageFolder
from helpers.places import NETS, Place
from helpers.sshd import Board
from PIL import Image

__all__ = ["pytest_runtest_makereport"]

torch.set_num_threads(1)  # tests run side by side, and one thread gives the same bits everywhere

# The same examples on every machine, however slow; `--hypothesis-profile default` draws new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that are marked `starts_first` come first; otherwise the order stays."""
    items.sort(key=lambda item: item.get_closest_marker("starts_first") is None)


@pytest.fixture(scope="session", autouse=True)
def read_operators_anew() -> Iterator[Callable[[], None]]:
    """torch's exporter reads the source of its five hundred operators for each export, a third of what a small one takes, and lists
    all operators that are made of others, a quarter.

    Here it does so once. It reads the operators again after this was called.
    """
    # here and not at the top: a private place, which may move
    from torch.export import decomp_utils, exported_program
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    known = functools.cache(ONNXRegistry.from_torchlib)
    composite = functools.cache(exported_program._collect_all_valid_cia_ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(known))
        for module in (decomp_utils, exported_program):
            patch.setattr(module, "_collect_all_valid_cia_ops", composite)
        yield known.cache_clear


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that do not exist yet. `mktemp` would look at all earlier ones each time."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of one test are not another's."""
    monkeypatch.setenv("COMPRESS_CACHE_DIR", str(next(caches)))


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Writes images as PNG: image_folder(train=12, test=4) -> folder with train/{cat,dog} and test/{cat,dog}.

    Cats are dark and dogs are bright, so that they can be told apart.
    """

    def write(root: Path | None = None, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", **splits: int) -> Path:
        root = root or tmp_path / "images"
        generator = np.random.default_rng(0)
        for split, count in splits.items():
            for label, name in enumerate(("cat", "dog")):
                folder = root / ("" if split == "flat" else split) / name
                folder.mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                    pixels = generator.integers(128 * label, 128 * label + 128, size=shape, dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{index:03}.png")
        return root

    return write


@pytest.fixture
def place(tmp_path: Path, image_folder: ImageFolder) -> Place:
    """A folder to run bad commands in."""
    (tmp_path / "nets.py").write_text(NETS)
    image_folder(train=4, test=2)
    return Place(tmp_path, image_folder)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """A device at the other end of a real OpenSSH server; for tests that are marked with `needs_sshd`."""
    board = Board(tmp_path / "board")
    board.start()
    yield board
    board.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The processor time, and how much of the fault matrix held; cells that were skipped cannot apply here."""
    print_costs(terminalreporter)
    passed, failed = (
        sum("test_fault_matrix.py::test_cell[" in report.nodeid for report in terminalreporter.getreports(each))
        for each in ("passed", "failed")
    )
    if passed or failed:
        terminalreporter.write_line(f"fault matrix: {passed} of {passed + failed} cells passed")
