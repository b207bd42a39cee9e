"""A run directory's journal: the facts of its job, and trials to record in it."""

from pathlib import Path
from typing import Any

from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Fingerprint, Measurement, Memory, TimedProcess
from pipeline.core.plan import ChannelPlan
from pipeline.core.remark import Remark, RemarkKind
from pipeline.core.run import Trial

JOB = {"model": "digits", "seed": 0}
FINGERPRINT = Fingerprint("device", "bench", "a processor", "x86_64", "1.22.0", 2, 4, (("arena", "True"), ("threads", "2")))
MEASURED = Measurement(
    FINGERPRINT,
    "s",
    (TimedProcess(((1.25, 1.5), (1.0, 1.125)), ((2.0, 2.5), (2.25, 2.0)), 3.5, 2.5, 1.1, None, 30.0),),
    Memory(100, None, 300),
    (Remark(RemarkKind.NOISY, "noisy: ±20 %"),),
)


def trial(number: int, *, plan: dict[str, int] | None = None, **changes: Any) -> Trial:
    known: dict[str, Any] = {"params": 10, "macs": 20, "file_size_bytes": 30, "structure": "s", "score": 97.5}
    known |= {"measurement": MEASURED, **changes}
    return Trial("search", number, Candidate(ChannelPlan.of(plan or {"conv1": 8, "größer": 16}), **known), 0.25)


def journal(folder: Path) -> Path:
    return folder / "journal.jsonl"
