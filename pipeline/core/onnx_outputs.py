"""Answers: what an ONNX file says to a batch, and how far two answers are apart."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "largest_difference", "open_session", "run_onnx"]

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest answer."""


def open_session(data: bytes, *, threads: int, optimized: bool = True) -> onnxruntime.InferenceSession:
    """A session on this machine's processor for answers, never for timed runs: threads that wait sleep, and let others work."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run_onnx(data: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The answer of an ONNX file to one batch, single-threaded."""
    session = open_session(data, threads=1)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def largest_difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """max |expected - found| over max |expected|; infinite when shapes differ or values are not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-6))
