"""Comparison: several runs side by side, which of them can be compared, and which of them no other run beats."""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.core.budget import show
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Fingerprint
from pipeline.core.statistics import Estimate
from pipeline.foreign_text import clean_text, shorten
from pipeline.packaging.report.recorded_run import RecordedRun

__all__ = [
    "Compared",
    "Difference",
    "clusters",
    "compare",
    "differences",
    "pareto_front",
    "remarks_of",
    "why_not_comparable",
]

VALUE_LIMIT = 80
VERSION = "version of"
NOT_CHOSEN = ("profile ", "measured on ", "hash of ", "input ", "initial weights ", VERSION)
"""Beginnings of settings that follow from the target, the data and the installation."""
MOST_DIFFERENCES = 300
"""Of more different settings, these are shown."""
DEEPEST = 6
"""Settings that are nested more deeply are compared as a whole."""


@dataclass(frozen=True)
class Compared:
    """One run of a comparison. All figures are those of its artifact, or of the best plan so far of an unfinished run."""

    letter: str
    run: RecordedRun

    @property
    def finished(self) -> bool:
        """Whether the figures are those of a tested file."""
        return self.run.artifact is not None

    @cached_property
    def candidate(self) -> Candidate | None:
        """The shipped network, or the best plan so far; None if there is none."""
        if self.run.artifact:
            return self.run.artifact.shipped
        best = self.run.best()
        return best.candidate if best else None

    @property
    def latency_ms(self) -> Estimate | None:
        """Median latency."""
        return self.candidate.measurement.latency_p50_ms if self.candidate and self.candidate.measurement else None

    @property
    def relative(self) -> Estimate | None:
        """Median latency as a share of the dense network's."""
        return self.candidate.measurement.relative_p50 if self.candidate and self.candidate.measurement else None

    @property
    def score(self) -> float | None:
        """Score on test data; of an unfinished run, on validation data before fine-tuning."""
        return self.candidate.score if self.candidate else None

    @property
    def dense_ms(self) -> Estimate | None:
        """Median latency of the dense network, timed in turn with this one."""
        return self.candidate.measurement.reference_p50_ms if self.candidate and self.candidate.measurement else None

    @property
    def dense(self) -> Candidate | None:
        """The dense network, with the score that `score` is to be compared with."""
        return self.run.artifact.dense if self.run.artifact else self.run.dense

    @property
    def judged(self) -> str:
        """What the score is, such as 'accuracy' or 'agreement'. Of an unfinished run it is not known."""
        rows = self.run.artifact.rows if self.run.artifact else ()
        return next((clean_text(row.title, 60).removesuffix(" (test)") for row in rows if row.key == "accuracy_drop"), "score")

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Where it was measured."""
        dense = self.run.dense
        return dense.measurement.fingerprint if dense and dense.measurement else None


Latency = Callable[[Compared], Estimate | None]
"""Which latency of a run is compared: that in milliseconds, or the share of the dense network's."""


@dataclass(frozen=True)
class Difference:
    """A setting that differs between runs."""

    name: str
    values: tuple[str, ...]
    """One per run; empty where a run has no such setting."""


def compare(runs: Sequence[RecordedRun]) -> tuple[Compared, ...]:
    """Give each run a letter: A, B, ..., Z, AA, AB, ..."""
    return tuple(Compared(_letter(number), run) for number, run in enumerate(runs))


def why_not_comparable(one: Compared, other: Compared) -> tuple[str, ...]:
    """Return why the accuracy or the latency of the two runs cannot be compared; empty where both can."""
    reasons = []
    mine, its = one.dense, other.dense
    if mine is None or its is None:
        reasons.append("nothing was measured yet in one of them")
    elif mine.structure != its.structure:
        reasons.append("the networks differ")
    elif _weights(one) != _weights(other):
        reasons.append("the dense networks have different weights")
    if _facts(one, "data") != _facts(other, "data") or _sources(one, "data") != _sources(other, "data"):
        reasons.append("the data differ")
    if one.finished and other.finished and one.judged != other.judged:
        reasons.append(f"one is judged by {one.judged}, the other by {other.judged}")
    if one.finished != other.finished:
        reasons.append("one of them is unfinished, so its score is not that of a fine-tuned network on test data")
    if one.fingerprint and other.fingerprint and (different := _places(one.fingerprint, other.fingerprint)):
        reasons.append(f"they were not measured in the same way ({different})")
    return tuple(reasons)


def clusters(runs: Sequence[Compared]) -> list[list[Compared]]:
    """The runs in groups that can be compared, in the order of their first members."""
    found: list[list[Compared]] = []
    for run in runs:
        group = next((group for group in found if not why_not_comparable(group[0], run)), None)
        if group is None:
            found.append([run])
        else:
            group.append(run)
    return found


def remarks_of(runs: Sequence[Compared]) -> list[str]:
    """Which runs cannot be compared with the first, and why; and where only relative latencies can be compared."""
    first, *others = runs
    found = [
        f"{other.letter} cannot be compared with {first.letter}: {'; '.join(reasons)}."
        for other in others
        if (reasons := why_not_comparable(first, other))
    ]
    for group in clusters(runs):
        for other in group[1:]:
            mine, its = group[0].dense_ms, other.dense_ms
            if mine and its and (mine.high < its.low or its.high < mine.low):
                found.append(
                    f"The dense network took {show(mine.value, 'ms')} in {group[0].letter} and {show(its.value, 'ms')} in "
                    f"{other.letter}: the machine was not equally fast, so compare the latencies in % of dense."
                )
    return found


def pareto_front(runs: Iterable[Compared], latency: Latency) -> list[Compared]:
    """The finished runs that no other run beats: none is both at least as fast and at least as accurate, and better in one.

    Sorted from the fastest to the slowest. Equal runs are all on the front.
    """
    known = [
        (run, (found.value, -run.score)) for run in runs if run.finished and (found := latency(run)) and run.score is not None
    ]
    front = [
        (run, mine) for run, mine in known if not any(its[0] <= mine[0] and its[1] <= mine[1] and its != mine for _, its in known)
    ]
    return [run for run, _ in sorted(front, key=lambda found: found[1])]


def differences(runs: Sequence[Compared]) -> tuple[tuple[Difference, ...], int]:
    """Return the settings that differ between `runs`, and how many settings are equal in all. What a user chooses comes first.

    A version differs only between runs that have it: an unfinished run has not noted any.
    """
    known = [dict(_settings(run.run)) for run in runs]
    names = sorted({name for settings in known for name in settings}, key=lambda name: (name.startswith(NOT_CHOSEN), name))
    different = [
        name
        for name in names
        if len({settings.get(name, "") for settings in known if name in settings or not name.startswith(VERSION)}) > 1
    ]
    found = tuple(Difference(name, tuple(settings.get(name, "") for settings in known)) for name in different[:MOST_DIFFERENCES])
    return found, len(names) - len(different)


def _settings(run: RecordedRun) -> Iterator[tuple[str, str]]:
    """(name, value) of everything that a run depends on: its job, its inputs, the device, and the versions of libraries."""
    yield from _flat("", run.job)
    for kind, title in (("inputs", "input"), ("sources", "hash of"), ("weights", "initial weights"), ("device", "measured on")):
        yield from _flat(title, run.facts(kind))
    if run.artifact:
        yield from _flat(VERSION, run.artifact.versions)


def _flat(name: str, value: object, depth: int = 0) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and depth < DEEPEST:
        for key, inner in value.items():
            yield from _flat(clean_text(f"{name} {key}".strip(), VALUE_LIMIT), inner, depth + 1)
    else:
        yield name, clean_text(shorten("not set" if value is None else str(value), 10 * VALUE_LIMIT), VALUE_LIMIT)


def _places(one: Fingerprint, other: Fingerprint) -> str:
    """In what two fingerprints differ, in words."""
    mine, its = one.facts, other.facts
    names = [name for name in dict.fromkeys((*mine, *its)) if mine.get(name) != its.get(name)]
    return ", ".join(
        f"{clean_text(name, 40)}: {clean_text(mine.get(name, 'not set'), 40)} and {clean_text(its.get(name, 'not set'), 40)}"
        for name in names[:4]
    )


def _weights(run: Compared) -> object:
    return run.run.facts("inputs").get("weights")


def _facts(run: Compared, name: str) -> Any:
    found = run.run.facts("inputs").get(name)
    return found if found is not None else run.run.artifact.data if run.run.artifact and name == "data" else None


def _sources(run: Compared, name: str) -> object:
    return run.run.facts("sources").get(name)


def _letter(number: int) -> str:
    letters = string.ascii_uppercase
    return letters[number] if number < len(letters) else _letter(number // len(letters) - 1) + letters[number % len(letters)]
