"""Answers: what the agent on a device may say, checked before anything is made of it; a device can be broken, or another's."""

from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.errors import DeliveryError
from pipeline.foreign_text import ForeignText as Text

__all__ = ["Begun", "Committed", "Done", "Health", "Previous", "Release", "StoreStatus", "checked"]

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Latency = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]

_strict = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_strict)
class Release:
    """One that was committed on a device."""

    release: Hash
    """SHA-256 of its manifest."""
    name: Text | None = None
    version: Count | None = None
    at: Text | None = None
    """UTC; null where the device's record was lost."""


@dataclass(frozen=True, config=_strict)
class StoreStatus:
    """What a device says of its store."""

    store: Text
    """Its folder."""
    history: tuple[Release, ...]
    """Committed releases, newest first; only the first serves."""
    current: Hash | None
    """The release that `current` leads to."""
    pending: Hash | None
    """One that was switched to and is not committed."""
    releases: tuple[Text, ...]
    incoming: Count
    """Shipments that were cut off, or are under way."""
    foreign: tuple[Text, ...]
    """The first few things in the store that this program did not make."""
    last: Text | None
    """What happened last, with its time."""
    healed: Text | None
    """What was put right just now."""
    busy: bool
    free_bytes: Count
    architecture: Text
    python: Text
    interpreter: Text


@dataclass(frozen=True, config=_strict)
class Begun:
    """What is there already of an artifact: it serves; it is placed; or these files have so many bytes, of that SHA-256."""

    current: bool = False
    placed: bool = False
    have: dict[Text, tuple[Count, Hash]] = Field(default_factory=dict)


@dataclass(frozen=True, config=_strict)
class Health:
    """What a health check saw."""

    golden_inputs: Annotated[int, Field(ge=1, lt=2**31)]
    """So many answered rightly."""
    peak_memory_bytes: Count | None
    """VmHWM of a process that loads and runs the model; null where the system does not tell."""
    runs: Count
    """Timed ones."""
    latency_p50_ms: Latency | None
    latency_p90_ms: Latency | None
    """The early-stopping p90 of MLPerf; null below 64 runs."""
    attempts: Annotated[int, Field(ge=1, lt=2**31)]
    """So many it took to stay within the budget."""


@dataclass(frozen=True, config=_strict)
class Previous:
    """The release to go back to."""

    release: Hash


@dataclass(frozen=True, config=_strict)
class Done:
    """Nothing to tell."""


@dataclass(frozen=True, config=_strict)
class Committed:
    """The release that is made to stay."""

    committed: Hash


Answer = TypeVar("Answer")


def checked(answer: dict[str, Any], kind: type[Answer], where: str) -> Answer:
    """`answer` as a `kind`. Raises DeliveryError when it is not of that form."""
    try:
        return TypeAdapter(kind).validate_python(answer)
    except ValidationError as problem:
        first = problem.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        detail = ascii(f"{path}: {first['msg']}"[:200])[1:-1]
        raise DeliveryError(f"{where}: what its agent says cannot be ({detail}); what served there serves on") from None
