"""Run directory: a lock, the job it belongs to, and a journal from which an interrupted run resumes."""

import contextlib
import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter

from pipeline.core.forecast import Forecast, ForecastTime
from pipeline.core.journal import FORMAT, Damage, Journal, OtherFormat, Role, Trial, digest_of, read_journal, sealed
from pipeline.core.journal_file import (
    JOURNAL_LIMIT_BYTES,
    append_whole,
    damaged_lines_path,
    journal_bytes,
    lock_journal,
    replace_journal,
)
from pipeline.errors import OtherJob, RunError
from pipeline.foreign_text import shorten
from pipeline.system.files import flush_folder, sha256_file, storage_errors, sweep
from pipeline.system.foreign_file import read_foreign

__all__ = ["Role", "Run", "Trial", "open_run", "read_run", "read_trials"]

Facts = Mapping[str, Any]
Kind = Literal["job", "inputs", "device", "weights", "sources", "grouped", "sensitivity", "search"]

NUMBERS_PER_BUDGET = 1000
"""The int8 trials of each budget have numbers in a range of this size."""
_TRIAL = TypeAdapter(Trial)
_ROLES = get_args(Role)


class Run:
    """An open run directory, made by `open_run`. One process can hold it at a time. See also `pipeline.core.journal`."""

    def __init__(self, folder: Path, journal: Journal, descriptor: int, notices: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.notices = notices
        """What the user should know about the journal."""
        self._journal = descriptor
        self._facts: dict[str, Facts] = dict(journal.facts)
        self._bound = dict(journal.bound)
        self._files = dict(journal.files)
        self._choices = list(journal.choices)
        self._forecasts = {forecast.made: forecast for forecast in reversed(journal.forecasts)}
        self._running: tuple[str, float] | None = None
        self._part = ""
        self.first_number = 1
        """Number of the first int8 trial. The budgets of a run do not share these trials."""
        self._phases = list(journal.phases)
        self.trials = sorted(journal.trials, key=_place)
        """Sorted in the order in which an uninterrupted run records them."""

    @property
    def dense_graph(self) -> Path:
        """Path of the dense graph, which is exported once."""
        return self.folder / "dense.onnx"

    @property
    def alignment(self) -> Path:
        """Path of the sweep results: which widths the device computes fast."""
        return self.folder / "alignment.json"

    @property
    def block_losses(self) -> Path:
        """Path of what dropping each block alone costs."""
        return self.folder / "blocks.json"

    @property
    def supernet(self) -> Path:
        """Path of the weights that all plans share."""
        return self.folder / "supernet.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Path of the state from which fine-tuning resumes."""
        return self.folder / f"finetune{self._part}.safetensors"

    @property
    def artifact(self) -> Path:
        """Path of the folder to ship."""
        return self.folder / f"artifact{self._part}"

    def for_budget(self, name: str, place: int) -> "Run":
        """Return this run with an artifact and a checkpoint of its own, for the budget number `place` of several, from 0.

        It shares the journal. With an empty `name` it is this run, because there is one budget.
        """
        if not name:
            return self
        part = copy.copy(self)
        part._part = f"-{name}"
        part.first_number = 1 + place * NUMBERS_PER_BUDGET
        return part

    def bind(self, kind: Kind, facts: Facts) -> None:
        """Bind the directory to `facts`. Raises OtherJob, with the differences, when it is bound to other facts."""
        facts = json.loads(json.dumps(facts))
        _refuse_others(self.folder, kind, self._facts.get(kind), self._bound.get(kind), facts)
        if kind not in self._facts:
            self._append({"kind": kind, "format": FORMAT, "facts": facts})
            self._facts[kind], self._bound[kind] = facts, digest_of(facts)

    def facts(self, kind: Kind) -> Facts | None:
        """Return the facts that the directory is bound to, or None."""
        return self._facts.get(kind)

    def find(self, role: Role, number: int) -> Trial | None:
        """Return the trial that an earlier process recorded under this role and number, or None."""
        return next((trial for trial in self.trials if (trial.role, trial.number) == (role, number)), None)

    def record(self, trial: Trial) -> None:
        """Append `trial` to the journal. It is on the disk when this returns."""
        self._append({"kind": "trial", "trial": _TRIAL.dump_python(trial, mode="json"), "bound": self._bound})
        self.trials.append(trial)
        self.trials.sort(key=_place)  # a damaged trial that was measured again returns to its old place

    def record_choice(self, text: str) -> None:
        """Append what the program chose by itself, in words. A choice that the journal has already is not appended."""
        if text not in self._choices:
            self._append({"kind": "choice", "text": text})
            self._choices.append(text)

    def record_forecast(self, forecast: Forecast) -> Forecast:
        """Append `forecast` to the journal, and return it. An earlier one of the same step is returned instead."""
        if forecast.made not in self._forecasts:
            self._append({"kind": "forecast", "forecast": asdict(forecast)})
            self._forecasts[forecast.made] = forecast
        return self._forecasts[forecast.made]

    @property
    def forecasts(self) -> tuple[Forecast, ...]:
        """How long the run was expected to take, in the order in which this was estimated."""
        return tuple(self._forecasts[made] for made in get_args(ForecastTime) if made in self._forecasts)

    @contextmanager
    def derived(self, path: Path, readable: Callable[[bytes], object], notify: Callable[[str], None]) -> Iterator[None]:
        """Wrap the code that makes the file `path`, or reuses it where it exists. The journal stores the file's hash.

        Before the block, a file whose hash is not the journal's is moved aside and `notify` is called; the block makes it again.
        A file of unknown hash (an older version wrote it, or a kill came early) is moved aside if `readable` raises an error.
        """
        if path.exists() and (wrong := self._wrong(path, readable)):
            aside = path.with_name(f"{path.name}.broken")
            with storage_errors(path):
                path.replace(aside)
            notify(f"{path}: {wrong}; it is created again, and the old file is kept as {aside.name}")
        yield
        if path.is_file() and (found := sha256_file(path)) not in self._files.get(path.name, ())[-1:]:
            self._append({"kind": "file", "name": path.name, "sha256": found})
            self._files[path.name] = (*self._files.get(path.name, ()), found)[-2:]

    def is_intact(self, path: Path) -> bool:
        """Whether the file `path` has a hash that the journal knows, or the journal knows no hash of it."""
        known = self._files.get(path.name)
        try:
            return not known or sha256_file(path) in known
        except OSError:
            return False

    def _wrong(self, path: Path, readable: Callable[[bytes], object]) -> str | None:
        """Return why the file `path` cannot be reused; None where it can."""
        known = self._files.get(path.name)
        if known:
            return None if self.is_intact(path) else "it was changed since this run wrote it"
        try:
            readable(read_foreign(path, JOURNAL_LIMIT_BYTES))
        except OSError as problem:
            return f"it cannot be read ({problem.strerror})"
        except Exception:  # a parser can raise anything for a file of another kind
            return "it is damaged"
        return None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record how long the block took, also when it is interrupted."""
        self._running = name, time.monotonic()
        try:
            yield
        finally:
            seconds = round(time.monotonic() - self._running[1], 3)
            self._running = None
            self._phases.append((name, seconds))
            self._append({"kind": "phase", "name": name, "seconds": seconds})

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds of each phase, summed over all processes of this run. The running phase counts up to now."""
        total: dict[str, float] = {}
        current = [(self._running[0], time.monotonic() - self._running[1])] if self._running else []
        for name, seconds in (*self._phases, *current):
            total[name] = round(total.get(name, 0.0) + seconds, 3)
        return total

    def _append(self, line: dict[str, Any]) -> None:
        append_whole(self._journal, sealed(line), self.folder / "journal.jsonl")


@contextmanager
def open_run(folder: Path, job: Facts) -> Iterator[Run]:
    """Open the run directory `folder` and bind it to `job`. It is made where missing, and locked until the block ends.

    Damaged lines of its journal are moved to journal.damaged and named in the run's notices. Raises RunLocked when another
    process holds it, OtherJob when it is another job's, StorageError when it cannot be written, RunError for a malformed journal.
    """
    path = folder / "journal.jsonl"
    with contextlib.ExitStack() as held:
        with storage_errors(folder):
            fresh = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            if fresh:
                flush_folder(folder.parent)
        descriptor = lock_journal(path, held)
        data = journal_bytes(path)
        journal = _understood(path, data)
        _refuse_others(folder, "job", journal.facts.get("job"), journal.bound.get("job"), json.loads(json.dumps(job)))
        sweep(folder)
        notices = (_damage_notice(path, journal.damage),) if journal.damage else ()
        whole = b"".join(line + b"\n" for line in journal.lines)
        if data.startswith(whole) and not journal.damage:  # a kill can leave a part of the next line
            if len(whole) < len(data):
                with storage_errors(path):
                    os.ftruncate(descriptor, len(whole))
        elif data + b"\n" == whole:
            append_whole(descriptor, b"\n", path)
        else:
            descriptor = replace_journal(path, whole, journal.damage, held)
        flush_folder(folder)
        run = Run(folder, journal, descriptor, notices)
        run.bind("job", job)
        yield run


def read_trials(folder: Path) -> list[Trial]:
    """Return the trials in the journal of `folder`, read without locking. Raises RunError."""
    return list(read_run(folder).trials)


def read_run(folder: Path, limit_bytes: int = JOURNAL_LIMIT_BYTES) -> Journal:
    """Return the journal of `folder`, read without locking, with its trials in the order of an uninterrupted run.

    A run may write to it meanwhile. Raises RunError, also when the file is larger than `limit_bytes`.
    """
    path = folder / "journal.jsonl"
    journal = _understood(path, journal_bytes(path, limit_bytes), "give a run directory that this version reads")
    return replace(journal, trials=tuple(sorted(journal.trials, key=_place)))


def _place(trial: Trial) -> tuple[int, int]:
    return _ROLES.index(trial.role), trial.number


def _understood(path: Path, data: bytes, remedy: str = "choose another --out") -> Journal:
    """Parse the journal. Raises RunError, which advises `remedy`, where no line, or the format, is this program's."""
    try:
        journal = read_journal(data)
    except OtherFormat as problem:
        text = f"{path}:{problem.number}: format {_short(problem.found)}; this program reads {FORMAT}; {remedy}"
        raise RunError(text) from None
    if journal.damage and not journal.lines:
        first = journal.damage[0]
        raise RunError(f"{path}:{first.number}: not a journal line of this program ({first.reason}); {remedy}")
    return journal


def _refuse_others(folder: Path, kind: str, known: Facts | None, bound: str | None, facts: Facts) -> None:
    """Raise OtherJob where `facts` differ from `known`, or their digest differs from `bound`."""
    if known is not None and known != facts:
        differences = "; ".join(
            f"{key}: {_short(known.get(key))} in the directory, {_short(facts.get(key))} now"
            for key in sorted({*known, *facts})
            if known.get(key) != facts.get(key)
        )
        raise OtherJob(f"{folder}: holds another job ({differences}); choose another --out, or remove the directory")
    if bound is not None and bound != digest_of(facts):
        raise OtherJob(
            f"{folder}: holds another job ('{kind}' differs; the details are unknown because that line of the journal is "
            "damaged); "
            "choose another --out, or remove the directory"
        )


def _damage_notice(path: Path, damage: tuple[Damage, ...]) -> str:
    named = "; ".join(f"line {each.number}: {each.reason}" for each in damage[:3])
    more = f"; and {len(damage) - 3} more" if len(damage) > 3 else ""
    lines = "1 damaged line was" if len(damage) == 1 else f"{len(damage)} damaged lines were"
    return f"{path}: {lines} moved to {damaged_lines_path(path).name} ({named}{more}); their trials are measured again"


def _short(value: object) -> str:
    text = json.dumps(value) if value is not None else "not set"
    return shorten(text, 60)
