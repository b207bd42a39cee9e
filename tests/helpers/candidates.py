"""A measured candidate whose every figure is given."""

from typing import Any

from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Fingerprint, Measurement, Memory, TimedProcess
from pipeline.core.plan import ChannelPlan

FINGERPRINT = Fingerprint("device", "here", "cpu", "x86_64", "1.22.0", 1, 1, ())


def candidate(
    *,
    latency_ms: float = 1.0,
    reference_ms: float = 2.0,
    memory: Memory | None = None,
    measured: bool = True,
    **known: Any,
) -> Candidate:
    """100 parameters, 1,000 MACs, 500 bytes, 96 percent right, and half as slow as its reference, without any noise."""
    blocks = (((latency_ms,) * 8,) * 8, ((reference_ms,) * 8,) * 8)
    measurement = Measurement(
        FINGERPRINT, "s", (TimedProcess(*blocks, 1.0, 1.0, 1.0, 0, 1.0),) * 2, memory or Memory(100, 150, 300)
    )
    facts = {"params": 100, "macs": 1000, "file_size_bytes": 500, "score": 96.0, **known}
    return Candidate(ChannelPlan.of({}), structure="s", measurement=measurement if measured else None, **facts)
