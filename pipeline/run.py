"""Run directory: a lock, the job it belongs to, and a journal from which an interrupted run goes on."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.candidate import Candidate
from pipeline.errors import OtherJob, RunError, RunLocked
from pipeline.files import flush_folder, storage_errors

__all__ = ["Role", "Run", "Trial", "open_run", "read_trials"]

FORMAT = 2
Role = Literal["dense", "thinnest", "uniform", "search", "finalist", "int8", "int8-dense"]
KINDS = ("job", "inputs", "device", "weights")
"""What a run directory is tied to: what was asked for, what was loaded, where it was measured, what plans inherit."""
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One candidate as the journal keeps it."""

    role: Role
    number: int
    """Counts from 1 within a role."""
    candidate: Candidate
    seconds: float
    """What it took, slicing, measuring and scoring together."""


_TRIAL = TypeAdapter(Trial)
_PHASE = TypeAdapter(tuple[str, float])
_FACTS = TypeAdapter(dict[str, Any])


class Run:
    """An open run directory; made by `open_run`, of which one process holds one at a time.

    The journal is a file of JSON lines, each flushed to the disk before anything follows from it. A last line that a
    crash tore is cut off on opening.
    """

    def __init__(self, folder: Path, lines: list[dict[str, Any]], journal: int) -> None:
        self.folder = folder
        self._journal = journal
        self._facts = {line["kind"]: line["facts"] for line in lines if line["kind"] in KINDS}
        self._running: tuple[str, float] | None = None
        self._phases = [(line["name"], line["seconds"]) for line in lines if line["kind"] == "phase"]
        self.trials = [_TRIAL.validate_python(line["trial"]) for line in lines if line["kind"] == "trial"]

    @property
    def dense_graph(self) -> Path:
        """The once-exported graph."""
        return self.folder / "dense.onnx"

    @property
    def alignment(self) -> Path:
        """Which widths the device was found to compute fast."""
        return self.folder / "alignment.json"

    @property
    def supernet(self) -> Path:
        """The weights that all plans share."""
        return self.folder / "supernet.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Where fine-tuning stands."""
        return self.folder / "finetune.safetensors"

    @property
    def artifact(self) -> Path:
        """The folder to ship."""
        return self.folder / "artifact"

    def bind(self, kind: Literal["job", "inputs", "device", "weights"], facts: Facts) -> None:
        """Tie the directory to `facts`; raises OtherJob, with what differs, when it is tied to others."""
        facts = json.loads(json.dumps(facts))
        known = self._facts.get(kind)
        if known is None:
            self._append({"kind": kind, "format": FORMAT, "facts": facts})
            self._facts[kind] = facts
        elif known != facts:
            differences = "; ".join(
                f"{key}: {_short(known.get(key))} there, {_short(facts.get(key))} here"
                for key in sorted({*known, *facts})
                if known.get(key) != facts.get(key)
            )
            raise OtherJob(f"{self.folder}: holds another job ({differences}); choose another --out, or remove the directory")

    def facts(self, kind: Literal["job", "inputs", "device", "weights"]) -> Facts | None:
        """What the directory is tied to, if it is."""
        return self._facts.get(kind)

    def find(self, role: Role, number: int) -> Trial | None:
        """The trial that an earlier process recorded under this role and number."""
        return next((trial for trial in self.trials if (trial.role, trial.number) == (role, number)), None)

    def record(self, trial: Trial) -> None:
        """Keep `trial`; on return it has reached the disk."""
        self._append({"kind": "trial", "trial": _TRIAL.dump_python(trial, mode="json")})
        self.trials.append(trial)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note how long the block took, also when it is cut short."""
        self._running = name, time.monotonic()
        try:
            yield
        finally:
            seconds = round(time.monotonic() - self._running[1], 3)
            self._running = None
            self._phases.append((name, seconds))
            self._append({"kind": "phase", "name": name, "seconds": seconds})

    def phase_seconds(self) -> dict[str, float]:
        """Phase -> seconds, summed over all processes that worked on this run; of the phase that goes on, those so far."""
        total: dict[str, float] = {}
        current = [(self._running[0], time.monotonic() - self._running[1])] if self._running else []
        for name, seconds in (*self._phases, *current):
            total[name] = round(total.get(name, 0.0) + seconds, 3)
        return total

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        with storage_errors(self.folder / "journal.jsonl"):
            end = os.lseek(self._journal, 0, os.SEEK_END)
            try:
                written = os.write(self._journal, data)
                while written < len(data):
                    written += os.write(self._journal, data[written:])
                os.fsync(self._journal)
            except OSError:
                os.ftruncate(self._journal, end)  # a full disk must not leave half a line for the next run
                raise


@contextmanager
def open_run(folder: Path, job: Facts) -> Iterator[Run]:
    """The run directory `folder`, made if need be, locked until the block ends, tied to `job`.

    Raises RunLocked when another process holds it, OtherJob when it belongs to another job, StorageError when it
    cannot be written, RunError when its journal is not ours to read.
    """
    with storage_errors(folder):
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        if fresh:
            flush_folder(folder.parent)
        journal = os.open(folder / "journal.jsonl", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunLocked(f"{folder}: another process works there; wait for it, or choose another --out") from None
        lines = _read(folder / "journal.jsonl", journal)
        flush_folder(folder)
        run = Run(folder, lines, journal)
        run.bind("job", job)
        yield run
    finally:
        os.close(journal)


def read_trials(folder: Path) -> list[Trial]:
    """The trials in the journal of `folder`, read without locking; raises RunError."""
    return [_TRIAL.validate_python(line["trial"]) for line in _read(folder / "journal.jsonl", None) if line["kind"] == "trial"]


def _read(path: Path, repair: int | None) -> list[dict[str, Any]]:
    """All whole lines; with a descriptor in `repair` a torn last one is cut off the file."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise RunError(f"{path}: cannot be read ({problem.strerror})") from None
    whole = data[: data.rfind(b"\n") + 1]
    if repair is not None and len(whole) < len(data):
        os.ftruncate(repair, len(whole))
    lines = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            match line["kind"]:
                case "trial":
                    _TRIAL.validate_python(line["trial"])
                case "phase":
                    _PHASE.validate_python((line["name"], line["seconds"]))
                case "job" | "inputs" | "device" | "weights":
                    if line["format"] != FORMAT:
                        raise RunError(
                            f"{path}:{number}: format {line['format']}; this program reads {FORMAT}; choose another --out"
                        )
                    _FACTS.validate_python(line["facts"])
                case kind:
                    raise ValueError(kind)
            lines.append(line)
        except (ValueError, KeyError, TypeError, ValidationError, RecursionError):
            raise RunError(f"{path}:{number}: not a journal line of this program; choose another --out") from None
    return lines


def _short(value: object) -> str:
    text = json.dumps(value) if value is not None else "not set"
    return text if len(text) <= 60 else text[:57] + "..."
