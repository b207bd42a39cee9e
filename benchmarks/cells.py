"""Raw lines of search quality: what was run, and its result. quality.py writes and reads them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COMMON = ("model", "trials", "epochs", "pinned_rate")
"""Fields of a raw line that all cells of a table share."""


@dataclass(frozen=True)
class Campaign:
    """What the cells of one table share."""

    model: str
    trials: int
    epochs: int
    pinned_rate: float | None
    """Learning rate of fine-tuning for all cells; None if each cell tried several."""
    results: Path
    """File of raw lines: one line of JSON per finished cell."""


@dataclass(frozen=True)
class Cell:
    """One complete run."""

    budget: str
    searcher: str
    seed: int


Facts = dict[str, Any]
"""The results of a finished cell: accuracy, latency_p50 and so on."""


def keep(campaign: Campaign, cell: Cell, found: Facts) -> None:
    """Add a finished cell to the raw lines."""
    line = {"model": campaign.model, **asdict(cell), "trials": campaign.trials, "epochs": campaign.epochs}
    with campaign.results.open("a") as file:
        file.write(json.dumps(line | {"pinned_rate": campaign.pinned_rate} | found) + "\n")


def finished(campaign: Campaign) -> dict[Cell, Facts]:
    """The cells of a campaign that have a raw line. If a cell has several, the last one counts."""
    texts = campaign.results.read_text().splitlines() if campaign.results.is_file() else []
    asked = (campaign.model, campaign.trials, campaign.epochs, campaign.pinned_rate)
    lines = [line for line in map(json.loads, texts) if tuple(line[name] for name in COMMON) == asked]
    return {Cell(line["budget"], line["searcher"], line["seed"]): line for line in lines}
