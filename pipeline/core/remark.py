"""Remark: why the figures of a measurement deserve doubt, and which of these reasons forbid a verdict."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator

__all__ = ["Remark", "RemarkKind", "StoredRemark"]


class RemarkKind(StrEnum):
    """What was seen."""

    NOISY = "noisy"
    """The runs of a process differ much from each other; the interval is wide because of it, and true."""
    SHARED = "shared"
    """Other programs used the cores, and it was corrected for: by leaving runs out, or by processor time."""
    REPEATED = "repeated"
    """How often it was measured before; never alone."""
    DISAGREEING = "disagreeing"
    """Processes differ, and they are too few for an interval."""
    PREEMPTED = "preempted"
    """Too few runs had the cores to themselves."""
    TAIL = "tail"
    """Many runs were preempted, so that the slowest ones are not known."""
    STOLEN = "stolen"
    """A hypervisor ran other machines on the cores."""
    QUOTA = "quota"
    """A control group stopped the processes because they had used up their processor time."""
    THROTTLED = "throttled"
    """The processor slowed down: heat, or the power supply."""
    OTHER = "other"
    """Written by another version of this program."""


_ADVICE = {
    RemarkKind.DISAGREEING: "raise probe.final_processes to 5 or more",
    RemarkKind.PREEMPTED: "end the other programs that run there, or lower runtime.threads so that cores stay free for them",
    RemarkKind.TAIL: "end the other programs that run there",
    RemarkKind.STOLEN: "use a machine, or virtual cores, that nobody shares",
    RemarkKind.QUOTA: "raise the limit on processor time to at least runtime.threads cores (docker run --cpus, systemd CPUQuota)",
    RemarkKind.THROTTLED: "cool the device or give it a better power supply, and raise probe.cooldown_s",
}
"""What to do about those that forbid a verdict."""


@dataclass(frozen=True)
class Remark:
    """One reason for doubt."""

    kind: RemarkKind
    text: str
    """For people."""

    @property
    def spoils(self) -> bool:
        """Whether the interval may miss the figure of the undisturbed device, so that no verdict can rest on it."""
        return self.kind in _ADVICE

    @property
    def only_slows(self) -> bool:
        """Whether it can make a figure larger but not smaller."""
        return self.kind in (RemarkKind.PREEMPTED, RemarkKind.STOLEN, RemarkKind.QUOTA, RemarkKind.THROTTLED)

    @property
    def advice(self) -> str:
        """What to do; empty where there is nothing to be done."""
        return _ADVICE.get(self.kind, "")

    def __str__(self) -> str:
        return self.text


_BEGINNINGS = {
    "noisy:": RemarkKind.NOISY,
    "processes disagree": RemarkKind.NOISY,
    "repeated ": RemarkKind.REPEATED,
    "throttled:": RemarkKind.THROTTLED,
}
"""Remarks were plain texts before they had a kind."""


def _from_text(stored: Any) -> Any:
    if not isinstance(stored, str):
        return stored
    kinds = (kind for beginning, kind in _BEGINNINGS.items() if stored.startswith(beginning))
    return Remark(next(kinds, RemarkKind.OTHER), stored)


StoredRemark = Annotated[Remark, BeforeValidator(_from_text)]
"""A remark as journals and artifacts hold it, also those that older versions wrote."""
