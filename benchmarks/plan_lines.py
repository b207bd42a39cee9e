"""The raw lines of recorded plans: one compressed file per network, and the plain file that grows while plans are recorded.

The first line describes the network and how it was measured. Each other line is one plan with its figures.
"""

import json
import lzma
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Choice, Layer, SearchSpace
from pipeline.system.files import write_atomically

__all__ = ["FOLDER", "Recording", "read_recording", "space_facts", "store_recording"]

LEAST_DISTANCE = 1e-3
FOLDER = Path(__file__).parent / "results" / "plans"


@dataclass(frozen=True)
class Recording:
    """What was recorded of one network."""

    header: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def space(self) -> SearchSpace:
        """The groups of channels and their widths."""
        return SearchSpace(tuple(_choice(facts) for facts in self.header["choices"]))

    @property
    def plans(self) -> list[dict[str, Any]]:
        """One line per plan: its widths, latency ratio, MACs, parameters, file size and score."""
        return [line for line in self.lines if line["kind"] in ("uniform", "random", "neighbour")]

    @property
    def repeats(self) -> list[dict[str, Any]]:
        """Second measurements of plans, some time after the first."""
        return [line for line in self.lines if line["kind"] == "again"]

    def unrepeated(self, count: int) -> list[dict[str, Any]]:
        """The plans that were measured again fewer than `count` times, each as often as is missing."""
        seen = Counter(tuple(line["widths"]) for line in self.repeats)
        return [line for turn in range(count) for line in self.plans if seen[tuple(line["widths"])] <= turn]

    @cached_property
    def ratios(self) -> dict[tuple[int, ...], list[float]]:
        """All measured latency ratios of each plan, by its widths."""
        found: dict[tuple[int, ...], list[float]] = {}
        for line in (*self.plans, *self.repeats):
            found.setdefault(tuple(line["widths"]), []).append(line.get("least_ratio", line["ratio"]))
        return found

    @property
    def distances(self) -> dict[ChannelPlan, float]:
        """How far the outputs move when one group alone loses channels; see `pipeline.search.sensitivity`.

        The distance of the dense network is taken off: new BatchNorm statistics move its outputs, too.
        """
        space = self.space
        found = {space.plan_of(line["widths"]): line["distance"] for line in self.lines if line["kind"] == "alone"}
        own = found.pop(space.dense(), 0.0)
        return {plan: max(distance - own, LEAST_DISTANCE) for plan, distance in found.items()}

    @property
    def fine_tuned(self) -> list[dict[str, Any]]:
        """Accuracies after the short fine-tuning."""
        return [line for line in self.lines if line["kind"] == "fine-tuned"]


def space_facts(space: SearchSpace) -> list[dict[str, Any]]:
    """The choices of `space` as plain data."""
    return [asdict(choice) for choice in space.choices]


def read_recording(path: Path) -> Recording | None:
    """Read a plain (.jsonl) or compressed (.jsonl.xz) file; None if there is none. A last line that was cut off is left out."""
    if not path.is_file():
        return None
    text = (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode()
    lines = [json.loads(line) for line in text.split("\n")[:-1]]
    return Recording(lines[0], lines[1:]) if lines else None


def store_recording(recording: Recording, path: Path) -> None:
    """Write the compressed file."""
    text = "".join(json.dumps(line) + "\n" for line in (recording.header, *recording.lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lzma.compress(text.encode(), preset=9))


def _choice(facts: dict[str, Any]) -> Choice:
    layer: dict[str, Any] = {name: _frozen(value) for name, value in facts["layer"].items()}
    plain: dict[str, Any] = {name: _frozen(value) for name, value in facts.items()}
    return Choice(**{**plain, "layer": Layer(**layer)})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
