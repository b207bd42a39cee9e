"""Providers: the execution providers of ONNX Runtime, and what each needs besides its name."""

import json
from typing import Any

__all__ = ["CPU", "OPENVINO", "PLUGINS", "REMOTE", "XNNPACK", "provider_settings", "way_to_install"]

CPU = "CPUExecutionProvider"
"""It runs every node that the provider that was asked for does not run."""
OPENVINO = "OpenVINOExecutionProvider"
XNNPACK = "XnnpackExecutionProvider"
PLUGINS = {OPENVINO: "onnxruntime_ep_openvino"}
"""Provider -> the module that brings it, as a library beside onnxruntime. Other builds of onnxruntime contain it."""
BUILDS = {OPENVINO: "onnxruntime-openvino"}
"""Provider -> the build of onnxruntime that contains it, and takes the place of onnxruntime."""
REMOTE = ("AzureExecutionProvider",)
"""Providers that send inputs to a server. Their latency is not this machine's."""


def provider_settings(provider: str, threads: int, *, allow_fallback: bool) -> dict[str, Any]:
    """Settings of a session that only this provider needs; none for the CPU provider.

    OpenVINO and XNNPACK have threads of their own. OpenVINO would compute in bfloat16 where the processor can.
    """
    if provider == CPU:
        return {}
    options: dict[str, str] = {}
    if provider == OPENVINO:
        own = {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
        options = {"load_config": json.dumps({"CPU": own})}
    elif provider == XNNPACK:
        options = {"intra_op_num_threads": str(threads)}
    return {"provider_options": options, **({"allow_fallback": True} if allow_fallback else {})}


def way_to_install(provider: str, cpu: str, architecture: str, *, unusable: bool) -> str:
    """What to install on a machine that does not have `provider`, as the start of a sentence; empty if nothing is known.

    `unusable`: the plugin is installed and cannot be used. OpenVINO's plugin refuses processors that are not Intel's.

    >>> way_to_install(OPENVINO, "AMD EPYC", "x86_64", unusable=False)
    'install onnxruntime-openvino in place of onnxruntime there, or '
    """
    if provider not in PLUGINS or architecture != "x86_64":
        return ""
    if "intel" in cpu.lower():
        return "" if unusable else f"install {PLUGINS[provider].replace('_', '-')} there, or "
    return f"install {BUILDS[provider]} in place of onnxruntime there, or "
