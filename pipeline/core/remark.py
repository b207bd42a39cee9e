"""Remark: a reason to doubt the figures of a measurement. Some reasons forbid a verdict."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["Remark", "RemarkKind", "StoredRemark"]


class RemarkKind(StrEnum):
    """What disturbed the measurement."""

    NOISY = "noisy"
    """The runs of a process differ much from each other. The interval is wide for this reason, and it is valid."""
    SHARED = "shared"
    """Other programs used the cores. The figures were corrected by leaving out runs, or by using processor time."""
    REPEATED = "repeated"
    """Says how often the measurement was repeated; it is never the only remark."""
    DISAGREEING = "disagreeing"
    """Processes differ, and there are too few of them for an interval."""
    PREEMPTED = "preempted"
    """Too few runs had the cores to themselves."""
    TAIL = "tail"
    """Many runs were preempted, so the slowest runs are not known."""
    STOLEN = "stolen"
    """A hypervisor ran other machines on the cores."""
    QUOTA = "quota"
    """A control group stopped the processes because they had used up their processor time."""
    THROTTLED = "throttled"
    """The processor slowed down because of heat or its power supply."""
    OTHER = "other"
    """Another version of this program wrote the remark."""


_ADVICE = {
    RemarkKind.DISAGREEING: "raise probe.final_processes to 5 or more",
    RemarkKind.PREEMPTED: "end the other programs on that machine, or lower runtime.threads to leave cores for them",
    RemarkKind.TAIL: "end the other programs on that machine",
    RemarkKind.STOLEN: "use a machine or virtual cores that are not shared",
    RemarkKind.QUOTA: "raise the limit on processor time to at least runtime.threads cores (docker run --cpus, systemd CPUQuota)",
    RemarkKind.THROTTLED: "cool the device or give it a better power supply, or raise probe.cooldown_s",
}
"""What to do about the kinds that forbid a verdict."""


@dataclass(frozen=True)
class Remark:
    """One reason to doubt a measurement."""

    kind: RemarkKind
    text: str
    """Explanation for people."""

    @property
    def forbids_verdict(self) -> bool:
        """Whether the interval may miss the figure of the undisturbed device, so that no verdict can be based on it."""
        return self.kind in _ADVICE

    @property
    def only_slows(self) -> bool:
        """Whether the disturbance can make a figure larger but not smaller."""
        return self.kind in (RemarkKind.PREEMPTED, RemarkKind.STOLEN, RemarkKind.QUOTA, RemarkKind.THROTTLED)

    @property
    def advice(self) -> str:
        """What to do; empty where nothing can be done."""
        return _ADVICE.get(self.kind, "")

    def __str__(self) -> str:
        return self.text


_BEGINNINGS = {
    "noisy:": RemarkKind.NOISY,
    "processes disagree": RemarkKind.NOISY,
    "repeated ": RemarkKind.REPEATED,
    "throttled:": RemarkKind.THROTTLED,
}
"""Beginnings of remarks of older versions, which stored plain texts without a kind."""


def _from_text(stored: Any) -> Any:
    if not isinstance(stored, str):
        return stored
    kinds = (kind for beginning, kind in _BEGINNINGS.items() if stored.startswith(beginning))
    return Remark(next(kinds, RemarkKind.OTHER), stored)


StoredRemark = Annotated[Remark, BeforeValidator(_from_text)]
"""A remark as journals and artifacts store it, including those of older versions."""
