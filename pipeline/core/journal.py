"""Journal: a file of JSON lines with checksums. Damaged lines are set aside, and all other lines are read.

    {"kind":"trial","trial":{...},"bound":{"job":"0123456789abcdef"},"checksum":"fedcba9876543210"}

The checksum covers everything before it in the line. Journals of earlier versions have lines without a checksum. Such a line is
read if no earlier line has a checksum. If a line merged with its neighbour, because the newline was lost or overwritten with
zeros, the reader finds it by its checksum.
"""

import bisect
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pydantic import TypeAdapter, ValidationError

from pipeline.core.candidate import Candidate
from pipeline.core.forecast import Forecast
from pipeline.core.plausible import implausible_candidate

__all__ = ["FACTS", "FORMAT", "Damage", "Journal", "OtherFormat", "Role", "Trial", "digest_of", "read_journal", "sealed"]

FORMAT = 2
FACTS = ("job", "inputs", "device", "weights", "sources", "grouped", "sensitivity", "search")
"""What a run directory is bound to: job, loaded network and data, device, initial weights, source files, how channels
leave grouped layers, sensitivities, and how many plans were evaluated at once."""
KINDS = (*FACTS, "trial", "phase", "file", "choice", "forecast")
Role = Literal["dense", "uniform", "thinnest", "search", "finalist", "int8", "int8-dense"]

_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{16})"\}')
_START = re.compile(rb'\{"kind":"(?:%s)"' % "|".join(KINDS).encode())


@dataclass(frozen=True)
class Trial:
    """One candidate as the journal stores it."""

    role: Role
    number: int
    """Number within the role, from 1."""
    candidate: Candidate
    seconds: float
    """Time for slicing, measuring and scoring together."""


@dataclass(frozen=True)
class Damage:
    """A damaged line, which is not read."""

    number: int
    """Line number, from 1."""
    reason: str
    data: bytes


@dataclass(frozen=True)
class Journal:
    """The content of a journal."""

    facts: Mapping[str, dict[str, Any]]
    """Facts by kind; see `FACTS`."""
    bound: Mapping[str, str]
    """Kind -> digest of the facts under which the trials were recorded; known even where the line of the facts is damaged."""
    trials: tuple[Trial, ...]
    phases: tuple[tuple[str, float], ...]
    """Name and duration in seconds of each phase."""
    files: Mapping[str, tuple[str, ...]]
    """Name of a derived file -> its last two SHA-256 hashes, the newer one last."""
    choices: tuple[str, ...]
    """What the program chose by itself, in words."""
    forecasts: tuple[Forecast, ...]
    """How long the run was expected to take, in the order in which this was estimated."""
    lines: tuple[bytes, ...]
    """Every line that was read."""
    damage: tuple[Damage, ...]


class OtherFormat(Exception):
    """Another version of this program wrote the journal. `number` is the line, `found` is its format."""

    def __init__(self, number: int, found: object) -> None:
        super().__init__(found)
        self.number, self.found = number, found


class _DamagedLine(ValueError):
    """A line that cannot be read; the message says why."""


_TRIAL = TypeAdapter(Trial)
_PHASE = TypeAdapter(tuple[str, float])
_FACTS = TypeAdapter(dict[str, Any])
_FILE = TypeAdapter(tuple[str, str])
_CHOICE = TypeAdapter(str)
_FORECAST = TypeAdapter(Forecast)


def sealed(line: Mapping[str, Any]) -> bytes:
    """Return `line` as the file stores it, with its checksum and the newline."""
    body = json.dumps(line, separators=(",", ":")).encode()
    return body[:-1] + b',"checksum":"%s"}\n' % _sum(body)


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return a short digest of `facts`. Different facts have different digests."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_journal(data: bytes) -> Journal:
    """Read the journal `data`. Every undamaged line with a checksum is read, and no damaged line is read.

    An incomplete last line, which a kill can leave, is neither read nor reported. Raises OtherFormat for another version's file.
    """
    reading = _Reading()
    texts = data.split(b"\n")
    for number, text in enumerate(texts, start=1):
        try:
            reading.take(text, number)
        except _DamagedLine as problem:
            for part in _parts(text):
                try:
                    reading.take(part, number)
                except _DamagedLine:
                    continue
            if number < len(texts):
                reading.damage.append(Damage(number, str(problem), text))
    return reading.journal()


class _Reading:
    """The state of the reader: the content of the lines so far."""

    def __init__(self) -> None:
        self.facts: dict[str, dict[str, Any]] = {}
        self.trials: dict[tuple[str, int], tuple[Trial, dict[str, str], int, bytes]] = {}
        self.phases: list[tuple[str, float]] = []
        self.files: dict[str, tuple[str, ...]] = {}
        self.choices: list[str] = []
        self.forecasts: list[Forecast] = []
        self.lines: list[bytes] = []
        self.damage: list[Damage] = []
        self.checksums = False

    def take(self, text: bytes, number: int) -> None:
        """Add the line `text`. Raises _DamagedLine when the line cannot be read, and OtherFormat."""
        line, with_checksum = _parsed(text)
        if self.checksums and not with_checksum:
            raise _DamagedLine("it has no checksum")
        match line.get("kind"):
            case "trial":
                trial, bound = _trial(line), _bound(line)
                known = self.trials.setdefault((trial.role, trial.number), (trial, bound, number, text))
                if known[0] != trial:
                    raise _DamagedLine(f"{trial.role} trial {trial.number} occurs before it with other results")
                if known[3] is not text:
                    return  # a repeated line is read only once
            case "phase":
                self.phases.append(_phase(line))
            case "file":
                name, digest = _checked(_FILE, (line.get("name"), line.get("sha256")))
                self.files[name] = (*self.files.get(name, ()), digest)[-2:]
            case "choice":
                self.choices.append(_checked(_CHOICE, line.get("text")))
            case "forecast":
                self.forecasts.append(_forecast(line))
            case kind:
                if line.get("format") != FORMAT and (with_checksum or number == 1) and "format" in line:
                    raise OtherFormat(number, line["format"])
                facts = _checked(_FACTS, line.get("facts"))
                if line.get("format") != FORMAT or self.facts.setdefault(str(kind), facts) != facts:
                    raise _DamagedLine(f"other facts of the kind '{kind}' occur before it, or its format is not {FORMAT}")
        self.checksums |= with_checksum
        self.lines.append(text)

    def journal(self) -> Journal:
        """Return everything that was read. A trial recorded under different facts belongs to another run and is damage."""
        digests = {kind: digest_of(facts) for kind, facts in self.facts.items()}
        trials = []
        for trial, bound, number, text in self.trials.values():
            if any(digests.setdefault(kind, digest) != digest for kind, digest in bound.items()):
                self.damage.append(Damage(number, "it belongs to another run", text))
                self.lines.remove(text)
            else:
                trials.append(trial)
        damage = tuple(sorted(self.damage, key=lambda each: each.number))
        return Journal(
            self.facts,
            digests,
            tuple(trials),
            tuple(self.phases),
            self.files,
            tuple(self.choices),
            tuple(self.forecasts),
            tuple(self.lines),
            damage,
        )


def _sum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def _parts(text: bytes) -> Iterator[bytes]:
    """Yield the parts of a damaged line that may be complete lines."""
    starts = [match.start() for match in _START.finditer(text)]
    for match in _CHECKSUM.finditer(text):
        if before := bisect.bisect_left(starts, match.start()):
            yield text[starts[before - 1] : match.end()]


def _parsed(text: bytes) -> tuple[dict[str, Any], bool]:
    """Return the JSON object in `text`, and whether it has a checksum."""
    found = _CHECKSUM.search(text, max(len(text) - 40, 0))
    if found and (body := text[: found.start()] + b"}") and _sum(body) != found[1]:
        raise _DamagedLine("its checksum is wrong")
    try:
        line = json.loads(body if found else text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise _DamagedLine("it is blank" if not text.strip(b"\0 \t\r") else "it is not JSON") from None
    ours = isinstance(line, dict) and isinstance(line.get("kind"), str) and line["kind"] in KINDS
    if not ours or (not found and "checksum" in line):
        raise _DamagedLine("this program did not write it")
    return line, bool(found)


def _no_number(text: str) -> NoReturn:
    raise ValueError(text)


def _checked(adapter: TypeAdapter[Any], value: object) -> Any:
    try:
        return adapter.validate_python(value)
    except (ValidationError, RecursionError):
        raise _DamagedLine("this program did not write it") from None


def _trial(line: Mapping[str, Any]) -> Trial:
    trial: Trial = _checked(_TRIAL, line.get("trial"))
    wrong = implausible_candidate(trial.candidate)
    if wrong or trial.number < 1 or not (math.isfinite(trial.seconds) and trial.seconds >= 0):
        raise _DamagedLine(wrong or "its number or its duration is invalid")
    return trial


def _bound(line: Mapping[str, Any]) -> dict[str, str]:
    bound = _checked(TypeAdapter(dict[str, str]), line.get("bound", {}))
    return {kind: digest for kind, digest in bound.items() if kind in FACTS}


def _forecast(line: Mapping[str, Any]) -> Forecast:
    forecast: Forecast = _checked(_FORECAST, line.get("forecast"))
    if not 0 <= forecast.low_s <= forecast.high_s < math.inf:
        raise _DamagedLine("its range is invalid")
    return forecast


def _phase(line: Mapping[str, Any]) -> tuple[str, float]:
    name, seconds = _checked(_PHASE, (line.get("name"), line.get("seconds")))
    if not (math.isfinite(seconds) and seconds >= 0):
        raise _DamagedLine("its duration is invalid")
    return name, seconds
