"""Answers: what a worker may say, checked before anything is made of it; a device can be broken, or another's."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from pipeline.errors import ProbeError
from pipeline.text import ForeignText as Text

__all__ = ["checked"]

Count = Annotated[int, Field(ge=0, lt=2**63)]
Figure = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Temperature = Annotated[float, Field(ge=-300, le=10_000, allow_inf_nan=False)]
Block = Annotated[list[Figure], Field(min_length=1)]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True)


class _Hello(_Answer):
    board: Text | None
    cpu: Text
    architecture: Text
    cores: list[Count] = Field(min_length=1)
    memory_bytes: Count | None
    free_memory_bytes: Count | None
    free_disk_bytes: Count
    folder: Text
    machine: Text
    system: Text
    python: Text
    interpreter: Text
    numpy: Text
    onnxruntime: Text
    providers: list[Text]
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
    free_memory_bytes: Count | None


class _Process(_Answer):
    session_creation_ms: Figure
    first_run_ms: Figure
    answer: list[float] | None
    latency_ms: list[Block] = Field(min_length=1)
    reference_latency_ms: list[Block]
    course: list[Annotated[tuple[Figure, Temperature | None], Strict(False)]]
    cpu_ms_per_run: Figure
    preemptions: Count
    timed_ms: Figure


class _Memory(_Answer):
    baseline_bytes: Count | None
    session_bytes: Count | None
    peak_bytes: Count | None
    rss_bytes: Count | None


class _Measured(_Answer):
    processes: list[_Process]
    memory: _Memory | None
    before: _State
    after: _State


_FORMS: dict[str, type[BaseModel]] = {"hello": _Hello, "state": _State, "measure": _Measured}


def checked(answer: dict[str, Any], asked: str, where: str) -> dict[str, Any]:
    """`answer` as it is, when it is one to the request `asked`, or a failure. Raises ProbeError when it is not."""
    form = None if "failure" in answer else _FORMS.get(asked)
    if form is None:
        return answer
    try:
        form.model_validate(answer)
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ProbeError(
            f"{where}: an answer that this program does not understand ({asked}: {place[:80]}: {first['msg'][:120]}); is "
            "something else answering there?"
        ) from None
    return answer
