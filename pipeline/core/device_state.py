"""Device state: how hot, fast and busy a machine is at one moment, and what slowed it down between two."""

from dataclasses import dataclass

__all__ = ["DeviceState", "stopped_by_quota", "throttled"]


@dataclass(frozen=True)
class DeviceState:
    """The state of a machine at one moment; null for what it does not report."""

    temperature_c: float | None
    """Temperature of the hottest zone."""
    clock_mhz: float | None
    clock_measured: bool
    """False: `clock_mhz` is the requested clock, which can differ from the actual one."""
    governor: str | None
    throttle_flags: int | None
    """Raspberry Pi: bit 0 under-voltage, 1 frequency capped, 2 throttled, 3 soft temperature limit; 16 to 19: since boot."""
    throttle_count: int | None
    """How often the processor slowed down since boot."""
    load: float | None
    """Mean number of processes that wanted a core in the last minute."""
    free_memory_bytes: int | None
    quota_cores: float | None = None
    """Processor time that a control group allows, in cores; null without a limit."""
    quota_stops: int | None = None
    """How often a control group stopped its processes because they had used up that time."""
    quota_stopped_ms: float | None = None
    """Total duration of these stops."""


def stopped_by_quota(before: DeviceState, after: DeviceState) -> str | None:
    """Describe how a control group stopped the processes between two moments; None when no stop is known."""
    stops = (after.quota_stops or 0) - (before.quota_stops or 0)
    if stops <= 0:
        return None
    limit = f" of {after.quota_cores:g} cores" if after.quota_cores is not None else ""
    stopped_ms = (after.quota_stopped_ms or 0.0) - (before.quota_stopped_ms or 0.0)
    return f"a control group's limit{limit} stopped the processes {stops} times, for {stopped_ms:.0f} ms"


def throttled(before: DeviceState, after: DeviceState) -> str | None:
    """Name what slowed the machine down between two moments; None when nothing is known."""
    flags = (before.throttle_flags or 0) & 0xF | (after.throttle_flags or 0) & 0xF
    # a bit of 16 to 19 that is newly set: the event happened between the two moments
    flags |= ((after.throttle_flags or 0) & ~(before.throttle_flags or 0)) >> 16 & 0xF
    names = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
    found = [name for bit, name in enumerate(names) if flags >> bit & 1]
    if not found and (after.throttle_count or 0) > (before.throttle_count or 0):
        found.append("throttled")
    return ", ".join(found) or None
