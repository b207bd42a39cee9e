"""Cells of `few.py`: which there are, in what order they run, and the raw lines of those that have run.

A cell is one recovery: network, pictures, budget, seed and row. Its raw line is one line of JSON in `NETWORK.jsonl`. All rows of
a network and budget have the same plan, from `plans.json`, so that they differ in the recovery only.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODELS = Path(__file__).parents[1] / "models"
RESULTS = Path(__file__).parent / "results" / "few"
ROWS = ("none", "statistics", "before", "distil", "mimic", "blocks", "mir", "auto")
"""`none`: the channels are removed, and nothing else. `statistics`: least-squares reconstruction and BatchNorm statistics; all
rows below start from there. `before`: labels and outputs, in epochs, as with many pictures. `mir`: MiR as published, with as many
steps as `auto`. The others are values of `--recover`.
"""
TIERS = (("statistics", "auto", "none"), ("before", "mir", "mimic", "distil", "blocks"))
"""Rows in the order in which they run. All seeds of the first tier run before the second one, because they decide whether `auto`
recovers anything. `mir` takes as many steps as `auto`, so it comes later.
"""
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Amount:
    """How many pictures there are to train and validate with."""

    pictures: int
    per_class: bool = False
    """Whether `pictures` is the number of each class, and not of all."""

    def __str__(self) -> str:
        return f"{self.pictures} a class" if self.per_class else str(self.pictures)


@dataclass(frozen=True)
class Network:
    """A network, and how it is examined."""

    name: str
    model: str
    """What `--model` takes."""
    pictures: str
    """"cifar" or "imagenet": which of the folders holds its pictures."""
    core_minutes: float
    """Processor time for `auto` and for each method."""
    settings: tuple[tuple[Amount, int], ...]
    """(pictures, budget in percent of the dense network's latency), the most telling one first."""
    weights: str | None = None
    """Name of a file in models/. None: the factory fills in the weights, or they are not in the repository."""
    needs_weights: bool = False
    """Whether its weights are not in the repository."""

    @property
    def weights_file(self) -> Path | None:
        """The file in models/."""
        return MODELS / self.weights if self.weights else None


_CIFAR = (
    *((Amount(200), 70), (Amount(200), 50), (Amount(500), 70), (Amount(50), 70), (Amount(500, per_class=True), 70)),
    *((Amount(500), 50), (Amount(50), 50), (Amount(50, per_class=True), 70), (Amount(5, per_class=True), 70)),
    *((Amount(200), 80), (Amount(500), 80), (Amount(50), 80), (Amount(500, per_class=True), 50)),
    *((Amount(50, per_class=True), 50), (Amount(5, per_class=True), 50), (Amount(500, per_class=True), 80)),
    *((Amount(50, per_class=True), 80), (Amount(5, per_class=True), 80)),
)
_IMAGENET = tuple((Amount(count), budget) for budget in (70, 80, 50) for count in (500, 200, 50))
NETWORKS = {
    network.name: network
    for network in (
        Network("efficientnet_lite0", f"{Path(__file__).parent}/efficientnet_lite0.py:make", "imagenet", 20.0, _IMAGENET),
        Network("resnet20", "resnet20", "cifar", 1.0, _CIFAR, "resnet20-cifar10.safetensors"),
        Network("mobilenet_v2", "mobilenet_v2", "cifar", 4.0, _CIFAR, "mobilenet_v2-cifar10.safetensors"),
        Network("resnet56", "resnet56", "cifar", 3.0, _CIFAR, "resnet56-cifar10.safetensors"),
        Network("vgg16_bn", "vgg16_bn", "cifar", 4.0, _CIFAR, needs_weights=True),
    )
}


@dataclass(frozen=True)
class Cell:
    """What one raw line is about."""

    network: str
    pictures: int
    per_class: bool
    budget: int
    """In percent of the dense network's latency."""
    core_minutes: float
    seed: int
    row: str

    @property
    def amount(self) -> Amount:
        """How many pictures there are."""
        return Amount(self.pictures, self.per_class)


Facts = dict[str, Any]
"""The results of a finished cell: agreement, interval, core_minutes_taken and so on."""


def cells_of(network: Network, seeds: tuple[int, ...] = SEEDS) -> Iterator[Cell]:
    """All cells of a network, the most telling ones first."""
    for amount, budget in network.settings:
        for tier in TIERS:
            for seed in seeds:
                for row in tier:
                    yield Cell(network.name, amount.pictures, amount.per_class, budget, network.core_minutes, seed, row)


def keep(results: Path, cell: Cell, facts: Facts) -> None:
    """Add a finished cell to the raw lines."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / f"{cell.network}.jsonl").open("a") as file:
        file.write(json.dumps(asdict(cell) | facts) + "\n")


def finished(results: Path, network: str) -> dict[Cell, Facts]:
    """The cells of a network that have a raw line. If a cell has several, the last one counts."""
    path = results / f"{network}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    names = [field.name for field in fields(Cell)]
    return {Cell(**{name: line.pop(name) for name in names}): line for line in lines}


def packed(hits: NDArray[np.bool_]) -> str:
    """Return `hits`, (pictures,), as a hexadecimal number of as many bits, filled up with zeros."""
    return np.packbits(hits).tobytes().hex()


def unpacked(text: str, pictures: int) -> NDArray[np.bool_]:
    """Return what `packed` made a text of, (pictures,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=pictures).astype(bool)
