"""Raw lines of search quality: what was run, and what came out. Written and read by quality.py."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COMMON = ("model", "trials", "epochs", "pinned_rate")
"""Of a raw line: what it has in common with the other cells of its table."""


@dataclass(frozen=True)
class Campaign:
    """What the cells of one table have in common."""

    model: str
    trials: int
    epochs: int
    pinned_rate: float | None
    """Of fine-tuning, for all alike; null where each cell tried rates."""
    results: Path
    """Raw lines: one of JSON for each finished cell."""


@dataclass(frozen=True)
class Cell:
    """One run of the whole walk."""

    budget: str
    searcher: str
    seed: int


Facts = dict[str, Any]
"""What is known of a finished cell: accuracy, latency_p50 and so on."""


def keep(campaign: Campaign, cell: Cell, found: Facts) -> None:
    """Add a finished cell to the raw lines."""
    line = {"model": campaign.model, **asdict(cell), "trials": campaign.trials, "epochs": campaign.epochs}
    with campaign.results.open("a") as file:
        file.write(json.dumps(line | {"pinned_rate": campaign.pinned_rate} | found) + "\n")


def finished(campaign: Campaign) -> dict[Cell, Facts]:
    """The cells of a campaign that have a raw line; the last line of a cell counts."""
    texts = campaign.results.read_text().splitlines() if campaign.results.is_file() else []
    asked = (campaign.model, campaign.trials, campaign.epochs, campaign.pinned_rate)
    lines = [line for line in map(json.loads, texts) if tuple(line[name] for name in COMMON) == asked]
    return {Cell(line["budget"], line["searcher"], line["seed"]): line for line in lines}
