"""Prints what loading and running an ONNX file adds to the peak memory of a process, in bytes.

python benchmarks/plan_memory.py FILE

The file takes one float32 input of a fixed shape.
"""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime

__all__ = ["session_of"]

RUNS = 10


def session_of(source: bytes | str) -> onnxruntime.InferenceSession:
    """A session with one thread and the settings of the Raspberry Pi's profile: on ARM there is no blocked layout."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
    )


def _peak_bytes() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    before = _peak_bytes()
    session = session_of(sys.argv[1])
    first = session.get_inputs()[0]
    for _ in range(RUNS):
        session.run(None, {first.name: np.zeros(first.shape, dtype=np.float32)})
    print(_peak_bytes() - before)
