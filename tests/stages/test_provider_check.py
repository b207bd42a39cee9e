"""A run on an execution provider that leaves nodes to another one: refused before the search, or accepted and said."""

import pytest
from helpers.analysed import builder_of
from helpers.graphs import profile
from helpers.nets import ZOO
from helpers.providers import IDLE, needs_idle

from pipeline.core.measurement import Failure
from pipeline.core.profile import Profile
from pipeline.core.providers import CPU
from pipeline.errors import ProbeError, ProviderFallback
from pipeline.stages.job import Job
from pipeline.stages.provider_check import check_provider_runs_all, not_measured
from pipeline.stages.shared_device import share_device


def on(provider: str, *, allowed: bool) -> Profile:
    """A profile of this machine with any provider."""
    plain = profile()
    changes = {"execution_provider": provider, "allow_fallback": allowed}
    return plain.model_copy(update={"runtime": plain.runtime.model_copy(update=changes)})


@needs_idle
def test_a_run_is_refused_with_the_operators_unless_its_profile_allows_the_fall_back() -> None:
    builder = builder_of(ZOO["chain"])
    with share_device(on(IDLE, allowed=True), print) as device:
        notice = check_provider_runs_all(device, builder)
    with share_device(on(IDLE, allowed=False), print) as device, pytest.raises(ProviderFallback) as refused:
        check_provider_runs_all(device, builder)

    assert notice is not None
    assert notice.startswith(f"{IDLE} does not run every node: {CPU} ran ")
    assert "Conv" in notice
    assert str(refused.value).endswith("or accept it: runtime.allow_fallback: true in the profile")
    assert refused.value.exit_code == 45


def test_the_cpu_provider_is_not_asked() -> None:
    """so a run on it starts no further process"""
    with share_device(on(CPU, allowed=False), print) as device:
        assert check_provider_runs_all(device, builder_of(ZOO["chain"])) is None
        assert device._connected is None


def test_a_session_that_would_fall_back_ends_a_run_with_the_same_code() -> None:
    assert type(not_measured("the dense network", Failure("fallback", "X does not run every node"))) is ProviderFallback
    assert type(not_measured("the dense network", Failure("load-error", "no"))) is ProbeError


def test_a_run_of_an_earlier_version_is_the_same_job_unless_the_fall_back_is_allowed_now() -> None:
    """A job's folder depends on its profile, so a new key must not move the runs that were begun before."""
    plain, allowing = (Job(target="here", model="digits").identity(on(CPU, allowed=allowed), {}) for allowed in (False, True))

    assert "allow_fallback" not in plain["profile"]["runtime"]
    assert allowing["profile"]["runtime"] == {**plain["profile"]["runtime"], "allow_fallback": True}
