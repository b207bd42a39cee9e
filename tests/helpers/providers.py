"""Execution providers that this machine may have besides the CPU's."""

import functools
import importlib.util
import json
import subprocess
import sys

import onnxruntime
import pytest

from pipeline.core.providers import OPENVINO, PLUGINS
from pipeline.probe.worker_probe import WORKER

IDLE = "AzureExecutionProvider"
"""A provider that runs no operator of ONNX, so the CPU provider runs every node. The usual builds of onnxruntime contain it."""
needs_idle = pytest.mark.skipif(
    IDLE not in onnxruntime.get_available_providers(), reason=f"this build of onnxruntime has no {IDLE}"
)


@functools.cache
def openvino_problem() -> str:
    """Why OpenVINO cannot be used here; empty if it can."""
    if OPENVINO not in onnxruntime.get_available_providers() and importlib.util.find_spec(PLUGINS[OPENVINO]) is None:
        return "OpenVINO is not installed: pip install 'edge-compress[openvino]'"
    found = json.loads(subprocess.run([sys.executable, str(WORKER), "versions"], capture_output=True, check=True).stdout)
    return "" if OPENVINO in found["providers"] else str(found["unusable"][OPENVINO])


needs_openvino = pytest.mark.skipif(bool(openvino_problem()), reason=openvino_problem())
