"""Intake: inspect an untrusted ONNX file in a separate process with limited memory and time."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.core.network_input import NetworkInput
from pipeline.errors import ModelError, one_line
from pipeline.graph.bounded_child import Limits, bytes_of, limit_memory, refusing, run_bounded
from pipeline.graph.fixed_inputs import fix_inputs
from pipeline.graph.given.door import Refused, Shapes
from pipeline.graph.structure import load_graph, structure

__all__ = ["Network", "look", "read_network"]

BASE_MEMORY_BYTES = 2 * 2**30
MEMORY_PER_BYTE = 4
"""Address space of the inspecting process; see `Limits`."""
TIME_LIMIT_S = 60.0
REFUSED = "not an ONNX file that can be measured"
NO_SHAPES: Shapes = {}


@dataclass(frozen=True)
class Network:
    """An ONNX file that holds all its weights, and takes tensors of numbers."""

    data: bytes
    structure: str
    inputs: tuple[NetworkInput, ...]
    """In the order of the file. Free sizes are those that were given, and 1 for a free batch size."""


def read_network(path: Path, shapes: Shapes = NO_SHAPES, option: str = "--shape", time_limit_s: float = TIME_LIMIT_S) -> Network:
    """Read the network in `path`. The network is not run, no other file is opened, and this process never parses the file.

    `shapes` are sizes of inputs by name, and `option` says where they come from; see `fix_inputs`. Raises ModelError when the
    file cannot be read, is not an ONNX file, keeps weights in other files, has an input without a size or of no number, or needs
    more memory or time to inspect than the limits.
    """
    data = bytes_of(path, REFUSED)
    limits = Limits(BASE_MEMORY_BYTES, MEMORY_PER_BYTE, time_limit_s)
    question = json.dumps({"given": {name: list(shape) for name, shape in shapes.items()}, "option": option})
    with refusing(path, REFUSED, len(data), limits):
        answer = json.loads(run_bounded("pipeline.graph.intake", (question,), data, limits))
    if "refused" in answer:
        raise ModelError(f"{path}: {answer['refused']}")
    inputs = tuple(NetworkInput(each["name"], each["type"], tuple(each["shape"])) for each in answer["inputs"])
    return Network(data, answer["structure"], inputs)


def look(data: bytes, given: Mapping[str, Any] = NO_SHAPES, option: str = "--shape") -> dict[str, object]:
    """Return the facts about an ONNX file, or the reason why it is refused. Runs in the separate process."""
    try:
        model = load_graph(data)
        hashed = structure(model)
    except Exception as problem:  # protobuf has its own error types
        return {"refused": f"{REFUSED} ({one_line(problem, 120)})"}
    if any(size < 0 for tensor in model.graph.initializer for size in tensor.dims):
        return {"refused": f"{REFUSED} (a weight has a dimension below zero)"}
    if not model.graph.output:
        return {"refused": f"{REFUSED} (it has no outputs)"}
    try:
        inputs = fix_inputs(model.graph, {name: tuple(shape) for name, shape in given.items()}, option)
    except Refused as reason:
        return {"refused": str(reason)}
    # sizes that were free change the latency, so the hash includes them
    return {"structure": structure(model) if given else hashed, "inputs": [asdict(each) for each in inputs]}


if __name__ == "__main__":
    limit_memory(int(sys.argv[1]))
    print(json.dumps(look(sys.stdin.buffer.read(), **json.loads(sys.argv[2]))))  # noqa: T201 - the parent process reads it
