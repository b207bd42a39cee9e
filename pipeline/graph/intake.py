"""Intake: inspect an untrusted ONNX file in a separate process with limited memory and time."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx

from pipeline.errors import ModelError, one_line
from pipeline.graph.bounded_child import Limits, bytes_of, limit_memory, run_bounded
from pipeline.graph.structure import load_graph, structure

__all__ = ["Network", "look", "read_network"]

MAX_INPUT_VALUES = 2**27
"""Half a gigabyte of float32; no image is that large."""
BASE_MEMORY_BYTES = 2 * 2**30
MEMORY_PER_BYTE = 4
"""Address space of the inspecting process; see `Limits`."""
TIME_LIMIT_S = 60.0
REFUSED = "not an ONNX file that can be measured"


@dataclass(frozen=True)
class Network:
    """An ONNX file that holds all its weights, with one float32 input of a fixed shape."""

    data: bytes
    structure: str
    shape: tuple[int, ...]
    """Shape of the input, with 1 for a free batch size."""


def read_network(path: Path, time_limit_s: float = TIME_LIMIT_S) -> Network:
    """Read the network in `path`. The network is not run, no other file is opened, and this process never parses the file.

    Raises ModelError when the file cannot be read, is not an ONNX file, keeps weights in other files, does not have exactly one
    float32 input of fixed shape, or needs more memory or time to inspect than the limits.
    """
    data = bytes_of(path, REFUSED)
    limits = Limits(BASE_MEMORY_BYTES, MEMORY_PER_BYTE, time_limit_s)
    try:
        answer = json.loads(run_bounded("pipeline.graph.intake", (), data, limits))
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path}: {REFUSED} (no end of it after {time_limit_s:.0f} s)") from None
    except ValueError:
        limit_bytes = limits.memory_bytes(len(data))
        raise ModelError(f"{path}: {REFUSED} (reading it takes more than {limit_bytes // 2**20} MiB)") from None
    if "refused" in answer:
        raise ModelError(f"{path}: {answer['refused']}")
    return Network(data, answer["structure"], tuple(answer["shape"]))


def look(data: bytes) -> dict[str, object]:
    """Return the facts about an ONNX file, or the reason why it is refused. Runs in the separate process."""
    try:
        model = load_graph(data)
        hashed = structure(model)
    except Exception as problem:  # protobuf has its own error types
        return {"refused": f"{REFUSED} ({one_line(problem, 120)})"}
    if any(size < 0 for tensor in model.graph.initializer for size in tensor.dims):
        return {"refused": f"{REFUSED} (a weight has a dimension below zero)"}
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        return {"refused": f"has {len(inputs)} inputs; only networks with one can be measured"}
    kind, name = inputs[0].type.tensor_type, inputs[0].name
    if kind.elem_type != onnx.TensorProto.FLOAT:
        known = kind.elem_type in onnx.TensorProto.DataType.values()
        found = onnx.TensorProto.DataType.Name(kind.elem_type) if known else f"of type {kind.elem_type}"
        return {"refused": f"its input '{name}' is {found}; only float32 can be measured"}
    shape = [dim.dim_value for dim in kind.shape.dim]
    if shape and shape[0] < 1:
        shape[0] = 1  # a free batch size becomes one image, as on a device
    if not shape or min(shape) < 1:
        free = [dim.dim_param or "?" if dim.dim_value < 1 else dim.dim_value for dim in kind.shape.dim]
        return {
            "refused": f"its input '{name}' has no fixed shape ({free}); fix it: python -m "
            "onnxruntime.tools.make_dynamic_shape_fixed"
        }
    if math.prod(shape) > MAX_INPUT_VALUES or len(shape) > 32:
        return {"refused": f"its input '{name}' of shape {shape} holds more than {MAX_INPUT_VALUES} values; is it an image?"}
    return {"structure": hashed, "shape": shape}


if __name__ == "__main__":
    limit_memory(int(sys.argv[1]))
    print(json.dumps(look(sys.stdin.buffer.read())))  # noqa: T201 - the parent process reads it
