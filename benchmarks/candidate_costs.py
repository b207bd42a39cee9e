"""The costs of candidates, and the tables that candidate.py prints."""

import statistics
from dataclasses import dataclass, field


@dataclass
class Costs:
    """Milliseconds of each part, with one entry per candidate."""

    slice_ms: list[float] = field(default_factory=list)
    sessions_ms: list[float] = field(default_factory=list)
    timed_ms: list[float] = field(default_factory=list)
    scoring_ms: list[float] = field(default_factory=list)
    library_ms: list[float] = field(default_factory=list)
    """Copy, prune, export, without the session."""
    hurry_ms: list[float] = field(default_factory=list)
    session_ms: list[float] = field(default_factory=list)
    """The new session of the exported file."""
    measured_ms: list[float] = field(default_factory=list)
    """The exported file's sessions and timed runs, by the probe."""
    scored_ms: list[float] = field(default_factory=list)
    """The score of the library's module."""

    def ready_ms(self) -> tuple[list[float], list[float], list[float]]:
        """Until a file can be timed: here, with the library, in a hurry."""
        return (
            _sums(self.slice_ms, self.sessions_ms),
            _sums(self.library_ms, self.session_ms),
            _sums(self.hurry_ms, self.session_ms),
        )

    def trial_ms(self) -> tuple[list[float], list[float], list[float]]:
        """Whole trials: here, with the library, in a hurry."""
        return (
            _sums(self.slice_ms, self.sessions_ms, self.timed_ms, self.scoring_ms),
            _sums(self.library_ms, self.measured_ms, self.scored_ms),
            _sums(self.hurry_ms, self.measured_ms, self.scored_ms),
        )


def tables(lines: list[dict[str, object]]) -> str:
    """Two tables of raw lines: until a file can be timed, and whole trials."""
    ready = [
        "| network | version | slice | sessions | here | library | factor | hurry | factor |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    trial = [
        "| network | version | images | timed runs | scoring | here | library | factor | hurry | factor |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for line in lines:
        costs = Costs(**{name: line[name] for name in vars(Costs())})  # type: ignore[arg-type]
        head = f"| {line['network']} | {line['label']} |"
        parts = f"{_cell(costs.slice_ms, ' ms', 1)} | {_cell(costs.sessions_ms, ' ms')}"
        ready.append(f"{head} {parts} | {_compared(*costs.ready_ms(), digits=1)} |")
        trial.append(
            f"{head} {line['images']} | {_cell(costs.timed_ms, ' ms')} | {_cell(costs.scoring_ms, ' ms')} | "
            f"{_compared(*costs.trial_ms(), digits=2)} |"
        )
    return "\n".join((*ready, "", *trial))


def _sums(*parts: list[float]) -> list[float]:
    return [sum(each) for each in zip(*parts, strict=True)]


def _compared(ours: list[float], *others: list[float], digits: int) -> str:
    cells = [_cell(ours, " ms")]
    for theirs in others:
        ratios = [other / own for other, own in zip(theirs, ours, strict=True)]
        cells += [_cell(theirs, " ms"), _cell(ratios, "x", digits)]
    return " | ".join(cells)


def _cell(values: list[float], unit: str, digits: int = 0) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"
