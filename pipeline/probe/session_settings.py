"""Session settings: what a measuring process needs to know, from the profile and the workload."""

from collections.abc import Sequence
from typing import Any

from pipeline.core.profile import Profile
from pipeline.core.providers import provider_settings
from pipeline.probe.interface import Workload

__all__ = ["session_settings"]


def session_settings(profile: Profile, cores: Sequence[int], load: Workload) -> dict[str, Any]:
    """Return the profile's runtime options, numbers of runs and time limits, for one thread on each of `cores`."""
    runtime, probe = profile.runtime, profile.probe
    return {
        "provider": runtime.execution_provider,
        **provider_settings(runtime.execution_provider, len(cores), allow_fallback=runtime.allow_fallback),
        "threads": len(cores),
        "cores": list(cores),
        "graph_optimization": runtime.graph_optimization,
        "spinning": runtime.spinning,
        "arena": runtime.arena,
        "memory_pattern": runtime.memory_pattern,
        "prepacking": runtime.prepacking,
        "blocked_layout": runtime.blocked_layout,
        "denormal_as_zero": runtime.denormal_as_zero,
        "warmup_runs": probe.warmup_runs,
        "runs": probe.runs,
        "block_runs": probe.block_runs,
        "time_limit_s": probe.time_limit_s,
        "timeout_s": probe.timeout_s + load.sustain_s,
        "period_ms": load.period_ms,
        "sustain_s": load.sustain_s,
    }
