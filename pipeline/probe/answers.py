"""Answers: turns the answers of a worker into data. They were validated before."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.feeds import Arrays, output_difference
from pipeline.core.measurement import TimedProcess

__all__ = ["outputs_difference", "timed_process"]


def outputs_difference(expected: Arrays, found: NDArray[np.float64]) -> float:
    """The largest max |expected - found| / max |expected| of all outputs; infinite when the sizes differ. `found` has the values
    of all outputs, one output after the other.
    """
    if sum(each.size for each in expected) != found.size:
        return float("inf")
    parts = np.split(found, np.cumsum([each.size for each in expected[:-1]]))
    found_of = (output_difference(one.ravel(), other, 1e-6) for one, other in zip(expected, parts, strict=True))
    return float(np.max([0.0, *found_of]))  # the built-in max may skip NaN


def timed_process(answer: dict[str, Any]) -> TimedProcess:
    """The runs of one process."""
    return TimedProcess(
        latency_ms=_rounded(answer["latency_ms"]),
        reference_latency_ms=_rounded(answer["reference_latency_ms"]),
        session_creation_ms=round(answer["session_creation_ms"], 3),
        first_run_ms=round(answer["first_run_ms"], 3),
        cpu_ms_per_run=round(answer["cpu_ms_per_run"], 4),
        preemptions=answer["preemptions"],
        timed_ms=round(answer["timed_ms"], 1),
        course=tuple((seconds, temperature) for seconds, temperature in answer["course"]),
        lost_ms=_rounded(answer.get("lost_ms", ()), 3),
        reference_lost_ms=_rounded(answer.get("reference_lost_ms", ()), 3),
        foreign_ms=answer.get("foreign_ms"),
        stolen_ms=answer.get("stolen_ms"),
    )


def _rounded(blocks: Sequence[Sequence[float]], digits: int = 5) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(each, digits) for each in block) for block in blocks)
