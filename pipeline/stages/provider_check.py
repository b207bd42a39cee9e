"""Provider check: a figure of an execution provider is refused if another one computed a part of it without permission."""

from pipeline.core.measurement import Failure
from pipeline.core.node_times import fallback
from pipeline.core.providers import CPU
from pipeline.errors import ProbeError, ProviderFallback
from pipeline.graph.pruned_model import PrunedModelBuilder
from pipeline.stages.shared_device import SharedDevice

__all__ = ["check_provider_runs_all", "not_measured"]

ADVICE = "choose another runtime.execution_provider, or accept it: runtime.allow_fallback: true in the profile"


def check_provider_runs_all(device: SharedDevice, builder: PrunedModelBuilder) -> str | None:
    """Return what other providers run of the dense network, for a notice; None if the profile's provider runs every node.

    Pruned networks have the same operators. Raises ProviderFallback if the profile does not allow it, and ProbeError.
    """
    runtime = device.profile.runtime
    if runtime.execution_provider == CPU:
        return None
    others = fallback(device.node_times(builder.make(builder.space.dense()), builder), runtime.execution_provider)
    if others and not runtime.allow_fallback:
        raise ProviderFallback(f"{runtime.execution_provider} does not run every node: {others}; {ADVICE}")
    return f"{runtime.execution_provider} does not run every node: {others}" if others else None


def not_measured(what: str, failure: Failure) -> ProbeError:
    """The error for a network that must be measured, and for which `failure` was found in place of figures."""
    text = f"{what} could not be measured: {failure.kind}: {failure.detail}"
    return ProviderFallback(f"{text}; {ADVICE}") if failure.kind == "fallback" else ProbeError(text)
