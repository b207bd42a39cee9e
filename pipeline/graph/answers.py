"""Answers: what an ONNX file says to a batch, and how far two answers are apart."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

__all__ = ["TOLERANCE", "largest_difference", "run_onnx"]

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the largest answer."""


def run_onnx(data: bytes, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """The answer of an ONNX file to one batch, single-threaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def largest_difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """max |expected - found| over max |expected|; infinite when shapes differ or values are not finite."""
    if expected.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), 1e-6))
