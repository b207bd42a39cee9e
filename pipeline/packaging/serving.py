"""Serving: the files that a device needs besides the model. They say how to run it, what it should answer, and its limits."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core.budget import Constraint
from pipeline.core.candidate import Candidate
from pipeline.core.profile import Precision, Profile
from pipeline.core.providers import CPU, PLUGINS, provider_settings

__all__ = ["GOLDEN_INPUTS", "SERVED_FILES", "device_limits", "serving_files"]

SERVED_FILES = ("model.onnx", "serving.json", "infer.py", "golden-inputs.npy", "golden-outputs.npy")
"""The files of an artifact that a device gets. Weights and report stay here."""
GOLDEN_INPUTS = 16
GOLDEN_BYTES = 2 * 2**20
"""Limit on the golden inputs' size. Large inputs are fewer, but at least one."""
TOLERANCES: dict[Precision, float] = {"fp32": 1e-2, "int8": 5e-2}
"""Largest difference from an expected output, as a share of the largest. Other processors' kernels round differently."""
_LEVELS = {"disabled": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
Golden = Mapping[str, NDArray[Any]]
"""Name of an input or output -> its values for all samples, (N, ...)."""
_LIMITED = {"latency_p50": "latency_p50_ms", "latency_p90": "latency_p90_ms", "peak_memory": "peak_memory_bytes"}
"""Metrics that the health check can judge, and its names for them."""


def serving_files(
    profile: Profile,
    inputs: Golden,
    outputs: Golden,
    limits: Mapping[str, float],
    precision: Precision = "fp32",
) -> dict[str, bytes]:
    """All of SERVED_FILES except the model.

    `inputs`: real inputs, (N, C, H, W), by name. `outputs`: the shipped file's answers, (N, ...), by name. GOLDEN_INPUTS and
    GOLDEN_BYTES limit how many are kept. `limits`: see `device_limits`.
    """
    arrays = list(inputs.values())
    size = sum(array[:1].nbytes for array in arrays)
    count = max(1, min(GOLDEN_INPUTS, len(arrays[0]), GOLDEN_BYTES // max(1, size)))
    runtime = profile.runtime
    serving = {
        "format": 1,
        "device": profile.device.name,
        "session": {
            "provider": runtime.execution_provider,
            **_of_the_provider(profile),
            "threads": profile.threads,
            "graph_optimization": _LEVELS[runtime.graph_optimization],
            "arena": runtime.arena,
            "memory_pattern": runtime.memory_pattern,
            "disabled_optimizers": [] if runtime.blocked_layout else ["NchwcTransformer"],
            "config": {
                "session.intra_op.allow_spinning": str(int(runtime.spinning)),
                "session.disable_prepacking": str(int(not runtime.prepacking)),
                "session.set_denormal_as_zero": str(int(runtime.denormal_as_zero)),
                **_no_fallback(profile),
            },
        },
        "tolerance": TOLERANCES[precision],
        "limits": dict(limits),
    }
    return {
        "serving.json": json.dumps(serving, indent=1).encode(),
        "infer.py": Path(__file__).with_name("infer.py").read_bytes(),
        "golden-inputs.npy": _npy(inputs, count),
        "golden-outputs.npy": _npy(outputs, count),
    }


def device_limits(constraints: tuple[Constraint, ...], dense: Candidate, shipped: Candidate) -> dict[str, float]:
    """The budget in the units of the health check: latency_p50_ms, latency_p90_ms, peak_memory_bytes.

    A limit relative to the dense network becomes a figure if the device itself measured the dense network. If another machine
    measured it, the figure would not hold for the device, and the limit is left out.
    """
    limits: dict[str, float] = {}
    measured = shipped.measurement
    for constraint in constraints:
        key = constraint.metric.key
        if key not in _LIMITED:
            continue
        if not constraint.relative:
            limits[_LIMITED[key]] = constraint.limit
        elif measured and measured.fingerprint.mode == "device":
            # the dense graph of the same minutes, if it was measured
            paired = {"latency_p50": measured.reference_p50_ms, "latency_p90": measured.reference_p90_ms}.get(key)
            whole = paired or constraint.metric.absolute(dense, dense)
            if whole:
                limits[_LIMITED[key]] = constraint.limit * whole.value
    return limits


def _of_the_provider(profile: Profile) -> dict[str, Any]:
    """What only this provider needs: its options, and the module that brings it. Nothing for the CPU provider."""
    provider = profile.runtime.execution_provider
    settings = provider_settings(provider, profile.threads, allow_fallback=profile.runtime.allow_fallback)
    return {**settings, **({"plugin": PLUGINS[provider]} if provider in PLUGINS else {})}


def _no_fallback(profile: Profile) -> dict[str, str]:
    """The setting that lets a session fail where the CPU provider would run nodes without permission."""
    allowed = profile.runtime.allow_fallback or profile.runtime.execution_provider == CPU
    return {} if allowed else {"session.disable_cpu_ep_fallback": "1"}


def _npy(values: Golden, count: int) -> bytes:
    """The first `count` samples as a .npy file. Several inputs or outputs become the fields of one structured array."""
    arrays = {name: np.ascontiguousarray(array[:count]) for name, array in values.items()}
    found = next(iter(arrays.values()))
    if len(arrays) > 1:
        fields = [(name, array.dtype, array.shape[1:]) for name, array in arrays.items()]
        found = np.zeros(len(found), dtype=fields)
        for name, array in arrays.items():
            found[name] = array
    buffer = io.BytesIO()
    np.save(buffer, found, allow_pickle=False)
    return buffer.getvalue()
