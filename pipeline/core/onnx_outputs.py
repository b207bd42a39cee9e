"""Outputs of ONNX files, and the difference between the outputs of two files."""

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.core.feeds import Arrays, Feeds, arrays_of, output_difference

__all__ = ["TOLERANCE", "all_outputs", "feeds_of", "largest_difference", "open_session", "run_onnx"]

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


def feeds_of(session: onnxruntime.InferenceSession, inputs: Feeds) -> dict[str, NDArray[Any]]:
    """Return `inputs`, in the order of the file's inputs, by name. Raises ValueError for another number of inputs."""
    names, arrays = [value.name for value in session.get_inputs()], arrays_of(inputs)
    if len(names) != len(arrays):
        raise ValueError(f"the file has {len(names)} inputs ({', '.join(names)}), got {len(arrays)}")
    return dict(zip(names, arrays, strict=True))


def run_onnx(data: bytes, inputs: Feeds) -> NDArray[Any]:
    """Return the first output of an ONNX file for one batch, computed by one thread."""
    return all_outputs(data, inputs)[0]


def all_outputs(data: bytes, inputs: Feeds) -> Arrays:
    """Return all outputs of an ONNX file for `inputs`, in the order of the file's outputs, computed by one thread."""
    session = open_session(data, threads=1)
    return tuple(np.asarray(value) for value in session.run(None, feeds_of(session, inputs)))


def largest_difference(expected: Feeds, found: Feeds) -> float:
    """Return max |expected - found| / max(|expected|, LEAST_OUTPUT), the largest of all outputs.

    It is infinite when numbers of outputs or shapes differ, or values are not finite. For integers see `output_difference`.
    """
    ours, theirs = arrays_of(expected), arrays_of(found)
    if len(ours) != len(theirs):
        return float("inf")
    return float(np.max([0.0, *(_difference(*pair) for pair in zip(ours, theirs, strict=True))]))  # max may skip NaN


def _difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return output_difference(expected, found, LEAST_OUTPUT) if np.isfinite(found).all() else float("inf")
