"""Simplify: run onnxsim in a child process. If anything goes wrong, the graph is returned unchanged."""

import sys
from dataclasses import dataclass

import onnx

from pipeline.core.feeds import Feeds
from pipeline.core.onnx_outputs import TOLERANCE, all_outputs, largest_difference
from pipeline.errors import one_line
from pipeline.graph.structure import load_graph
from pipeline.system.child_process import run_child
from pipeline.system.scratch import scratch_folder

__all__ = ["Simplified", "simplify"]

TIME_LIMIT_S = 120.0
# onnxsim imports torch if it can, which takes seconds and is not needed here
WITHOUT_TORCH = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('onnxsim', run_name='__main__', alter_sys=True)"
COMMAND = (sys.executable, "-c", WITHOUT_TORCH)


@dataclass(frozen=True)
class Simplified:
    """The graph to ship, and what the attempt did."""

    data: bytes
    note: str
    """For example 'simplified: 49 -> 47 nodes', or the reason why the graph was not changed."""


def simplify(
    data: bytes,
    inputs: Feeds,
    command: tuple[str, ...] = COMMAND,
    time_limit_s: float = TIME_LIMIT_S,
) -> Simplified:
    """Fold constants and remove unused nodes in `data`, an ONNX file.

    If onnxsim crashes, hangs, writes an unusable file or changes an output for `inputs`, one sample, the result is `data`
    itself with a note. A failure of onnxsim never raises an error.
    """
    with scratch_folder("simplify") as folder:
        source, target = folder / "in.onnx", folder / "out.onnx"
        source.write_bytes(data)
        failure = run_child((*command, str(source), str(target)), time_limit_s)
        if failure is None and not target.is_file():
            failure = "it wrote no file"
        if failure is not None:
            return Simplified(data, f"not simplified: {failure}")
        smaller = target.read_bytes()
    try:
        before, after = load_graph(data), load_graph(smaller)
        onnx.checker.check_model(after, full_check=True)
        difference = largest_difference(all_outputs(data, inputs), all_outputs(smaller, inputs))
    except Exception as problem:
        return Simplified(data, f"not simplified: its result is not a usable graph ({one_line(problem, 120)})")
    if not difference <= TOLERANCE:
        return Simplified(data, f"not simplified: its result answers differently (by {100 * difference:.2g} %)")
    if _door(before) != _door(after):
        return Simplified(data, "not simplified: its result has other inputs, other outputs or another opset")
    if len(after.graph.node) > len(before.graph.node):
        return Simplified(data, "not simplified: its result has more nodes")
    after.ir_version = before.ir_version
    del after.metadata_props[:]
    after.metadata_props.extend(before.metadata_props)
    after.producer_name, after.producer_version = before.producer_name, before.producer_version
    note = f"simplified: {len(before.graph.node)} -> {len(after.graph.node)} nodes"
    return Simplified(after.SerializeToString(deterministic=True), note)


def _door(model: onnx.ModelProto) -> tuple[list[str], list[str], list[int]]:
    """The interface of the graph: names of inputs, names of outputs, opset."""
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output], opsets
