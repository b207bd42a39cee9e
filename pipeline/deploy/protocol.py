"""Protocol: the answers that the agent may give. They are checked before use, because the device may be broken or hostile."""

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
    """A release that was committed on a device."""

    release: Hash
    """SHA-256 of its manifest."""
    name: Text | None = None
    version: Count | None = None
    at: Text | None = None
    """UTC; None if the device's record was lost."""


@dataclass(frozen=True, config=_strict)
class StoreStatus:
    """The state of a device's store."""

    store: Text
    """Its folder."""
    history: tuple[Release, ...]
    """Committed releases, newest first. Only the first one serves."""
    current: Hash | None
    """The release that `current` points to."""
    pending: Hash | None
    """A release that was switched to and is not committed."""
    releases: tuple[Text, ...]
    incoming: Count
    """Number of shipments that were cut off or are under way."""
    foreign: tuple[Text, ...]
    """The first few things in the store that this program did not make."""
    last: Text | None
    """The last event, with its time."""
    recovered: Text | None
    """What was just recovered."""
    busy: bool
    free_bytes: Count
    architecture: Text
    python: Text
    interpreter: Text


@dataclass(frozen=True, config=_strict)
class Begun:
    """What the device already has of an artifact: it serves; or it is installed; or these files have this size and SHA-256."""

    current: bool = False
    placed: bool = False
    have: dict[Text, tuple[Count, Hash]] = Field(default_factory=dict)


@dataclass(frozen=True, config=_strict)
class Health:
    """The result of a health check."""

    golden_inputs: Annotated[int, Field(ge=1, lt=2**31)]
    """Number of golden inputs that were answered correctly."""
    peak_memory_bytes: Count | None
    """VmHWM of a process that loads and runs the model; None if the system does not report it."""
    runs: Count
    """Number of timed runs."""
    latency_p50_ms: Latency | None
    latency_p90_ms: Latency | None
    """The early-stopping p90 of MLPerf; None below 64 runs."""
    attempts: Annotated[int, Field(ge=1, lt=2**31)]
    """Number of attempts until it stayed within the budget."""


@dataclass(frozen=True, config=_strict)
class Previous:
    """The release to roll back to."""

    release: Hash


@dataclass(frozen=True, config=_strict)
class Done:
    """An answer without content."""


@dataclass(frozen=True, config=_strict)
class Committed:
    """The release that was committed."""

    committed: Hash


Answer = TypeVar("Answer")


def checked(answer: dict[str, Any], kind: type[Answer], where: str) -> Answer:
    """`answer` as a `kind`. Raises DeliveryError if it does not have that form."""
    try:
        return TypeAdapter(kind).validate_python(answer)
    except ValidationError as problem:
        first = problem.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        detail = ascii(f"{path}: {first['msg']}"[:200])[1:-1]
        raise DeliveryError(f"{where}: its agent gave an impossible answer ({detail}); the old release stays active") from None
