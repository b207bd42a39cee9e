"""Protocol: validate the answers of a worker before use, because a device may be broken or not trusted."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from pipeline.errors import ProbeError
from pipeline.foreign_text import ForeignText as Text
from pipeline.foreign_text import shorten

__all__ = ["checked"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
ByteCount = Annotated[int, Field(ge=0, le=2**50)]
"""At most one pebibyte; no board has more."""
Figure = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=-300, le=10_000, allow_inf_nan=False)]
Block = Annotated[list[Figure], Field(min_length=1)]
Latency = Annotated[float, Field(ge=1e-5, le=1e9, allow_inf_nan=False)]
"""Latency in ms. No run takes less than ten nanoseconds, and zero would make ratios infinite."""
Latencies = Annotated[list[Latency], Field(min_length=1)]
FileFailureKind = Literal[
    "timeout", "killed", "illegal-instruction", "segfault", "crashed", "load-error", "run-error", "wrong-output", "fallback"
]
"""Failures of a file; they are kept in the journal."""
MachineFailureKind = Literal["not-kept", "busy", "not-installed"]
"""Failures of the machine; they end the run."""


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


class _Hello(_Answer):
    board: Text | None
    cpu: Text
    architecture: Text
    cores: list[Count] = Field(min_length=1)
    memory_bytes: ByteCount | None
    free_memory_bytes: ByteCount | None
    free_disk_bytes: ByteCount
    machine_cores: Count | None = None
    folder: Text
    machine: Text
    system: Text
    python: Text
    interpreter: Text
    numpy: Text
    onnxruntime: Text
    providers: list[Text]
    unusable: dict[Text, Text] = Field(default_factory=dict)
    wheel: Text | None


class _State(_Answer):
    model_config = ConfigDict(extra="forbid")

    temperature_c: Temperature | None
    clock_mhz: Figure | None
    clock_measured: bool
    governor: Text | None
    throttle_flags: Count | None
    throttle_count: Count | None
    load: Figure | None
    free_memory_bytes: ByteCount | None
    quota_cores: Figure | None = None
    quota_stops: Count | None = None
    quota_stopped_ms: Figure | None = None


class _Process(_Answer):
    session_creation_ms: Figure
    first_run_ms: Figure
    answer: list[Annotated[float, Field(allow_inf_nan=False)]] | None
    latency_ms: list[Latencies] = Field(min_length=1)
    reference_latency_ms: list[Latencies]
    lost_ms: list[Block] = Field(default_factory=list)
    reference_lost_ms: list[Block] = Field(default_factory=list)
    foreign_ms: Figure | None = None
    stolen_ms: Figure | None = None
    course: list[Annotated[tuple[Figure, Temperature | None], Strict(False)]]
    cpu_ms_per_run: Figure
    preemptions: Count
    timed_ms: Figure

    @model_validator(mode="after")
    def _losses_are_of_the_runs(self) -> "_Process":
        for runs, lost in ((self.latency_ms, self.lost_ms), (self.reference_latency_ms, self.reference_lost_ms)):
            if lost and [len(block) for block in lost] != [len(block) for block in runs]:
                raise ValueError("the lost times do not match the timed runs")
        return self


class _Memory(_Answer):
    baseline_bytes: ByteCount | None
    session_bytes: ByteCount | None
    peak_bytes: ByteCount | None
    rss_bytes: ByteCount | None


class _Measured(_Answer):
    processes: list[_Process] = Field(min_length=1, max_length=1000)
    memory: _Memory | None
    before: _State
    after: _State


class _Profiled(_Answer):
    nodes: list[Annotated[tuple[Text, Text, Text, Figure], Strict(False)]] = Field(max_length=1_000_000)


class _Failed(_Answer):
    failure: Annotated[tuple[FileFailureKind | MachineFailureKind, Text], Strict(False)]
    interpreter: Text | None = None
    onnxruntime: Text | None = None


_FORMS: dict[str, type[BaseModel]] = {"hello": _Hello, "state": _State, "measure": _Measured, "profile": _Profiled}


def checked(answer: dict[str, Any], asked: str, where: str) -> dict[str, Any]:
    """Return `answer` unchanged if it fits the request `asked` or is a known failure. The link has already cleaned its texts.

    Raises ProbeError, with the name of the device, for any other answer and for impossible figures.
    """
    form = _Failed if "failure" in answer else _FORMS.get(asked)
    if form is None:
        return answer
    try:
        form.model_validate(answer)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = shorten(".".join(str(part) for part in first["loc"]), 80)
        raise ProbeError(
            f"{where}: invalid answer ({asked}: {place}: {shorten(first['msg'], 120)}); check that device.host is the right "
            "machine"
        ) from None
    return answer
