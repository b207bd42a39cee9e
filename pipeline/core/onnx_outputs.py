"""Outputs of ONNX files, and the difference between two outputs."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "all_outputs", "largest_difference", "open_session", "run_onnx"]

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest absolute output."""


LEAST_OUTPUT = 1e-3
"""Smaller outputs count as this large. Runtimes compute a sigmoid only to some 1e-8, however small it is."""


def open_session(data: bytes, *, threads: int, optimized: bool = True) -> onnxruntime.InferenceSession:
    """Open a session for outputs, never for timed runs: waiting threads sleep and leave this machine's cores to others."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_onnx(data: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output of an ONNX file for one batch, computed by one thread."""
    session = open_session(data, threads=1)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def all_outputs(data: bytes, inputs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return all outputs of an ONNX file for `inputs`, in the order of the file's inputs, computed by one thread."""
    session = open_session(data, threads=1)
    names = [value.name for value in session.get_inputs()]
    return [np.asarray(value) for value in session.run(None, dict(zip(names, inputs, strict=True)))]


def largest_difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return max |expected - found| / max(|expected|, LEAST_OUTPUT); infinite when shapes differ or values are not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), LEAST_OUTPUT))
