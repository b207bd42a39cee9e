"""Raw lines of the depth benchmark: what was run, and its result. depth.py writes and reads them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESULTS = Path(__file__).with_name("results") / "depth.jsonl"
NETWORKS = ("resnet56", "resnet20", "mobilenet_v2", "vit", "efficientnet_lite0")
BUDGETS = (50, 25)
ROWS = {"both": "depth and width", "width": "width alone", "practise": "PRACTISE's choice of blocks"}

Facts = dict[str, Any]
"""The results of a finished cell: agreement, accuracy, latency and so on."""


@dataclass(frozen=True)
class Settings:
    """What all cells of a table share."""

    trials: int = 24
    pictures: int = 500
    """Training pictures, without labels."""
    validation: int = 250
    test: int = 2000
    epochs: int = 16
    """Of recovery, over the training pictures."""
    learning_rates: tuple[float, ...] = (0.02, 0.002)
    """Of recovery. Each cell is recovered with each of them, and the validation pictures decide."""
    batch_size: int = 64
    recover: str = "mimic"
    threads: int = 1
    """Of one inference."""


@dataclass(frozen=True)
class Cell:
    """One line of the table for one seed."""

    network: str
    budget: int
    """Share of the dense network's latency, in percent."""
    row: str
    seed: int


def cells(networks: tuple[str, ...] = NETWORKS, budgets: tuple[int, ...] = BUDGETS, seeds: int = 3) -> Iterator[Cell]:
    """The cells, those that tell most first: the looser budget of all networks, then the tighter one."""
    for budget in budgets:
        for network in networks:
            for seed in range(seeds):
                yield from (Cell(network, budget, row, seed) for row in ROWS)


def keep(path: Path, cell: Cell, settings: Settings, found: Facts) -> None:
    """Append a finished cell to the raw lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**asdict(cell), "settings": _plain(settings), **found}) + "\n")


def finished(path: Path, settings: Settings) -> dict[Cell, Facts]:
    """The cells with these settings that have a raw line. If a cell has several, the last one counts."""
    texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = [line for line in map(json.loads, texts) if line["settings"] == _plain(settings)]
    return {Cell(*(line[name] for name in Cell.__dataclass_fields__)): line for line in lines}


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return found


def packed(hits: NDArray[np.bool_]) -> str:
    """One bit for each test picture, as hexadecimal digits."""
    return bytes(np.packbits(hits)).hex()


def unpacked(line: Mapping[str, Any], name: str) -> NDArray[np.bool_]:
    """The bits that `packed` stored under `name`."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(line[name]), dtype=np.uint8), count=line["test"])
    return bits.astype(bool)
