"""One network of the coverage benchmark, in a process of its own with limits. coverage.py starts it.

Run: python benchmarks/coverage_child.py timm:resnet18 FOLDER. It writes FOLDER/result.json, and FOLDER/phase while it runs.
"""

import ctypes
import faulthandler
import json
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from coverage_networks import NotBuilt, build
from torch import nn

from pipeline.core.batch import arrays_in
from pipeline.core.onnx_outputs import all_outputs, largest_difference
from pipeline.core.opsets import USUAL_IR_VERSION, USUAL_OPSET, FileFormat
from pipeline.core.plan import ChannelPlan, PruneSpace
from pipeline.errors import CompressError, NothingToPrune, one_line
from pipeline.graph.blocks import find_blocks
from pipeline.graph.labels.space import name_nodes
from pipeline.graph.match_weights import match_weights
from pipeline.graph.prove import prove_blocks
from pipeline.graph.pruned_model import PrunedModelBuilder, start_builder
from pipeline.graph.settings import PruningSettings
from pipeline.graph.structure import load_graph
from pipeline.search.problem import widths_of
from pipeline.stages.not_prunable import by_kind

FORM = FileFormat(USUAL_OPSET, USUAL_IR_VERSION, 21)
REASONS, NAMES = 12, 3
"""How many reasons, and how many names for each, a raw line has."""
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""
NO_MEMORY = ("allocate memory", "bad_alloc", "Cannot allocate")


def examine(name: str, folder: Path, limit_s: float) -> dict[str, Any]:
    """Build the network, analyse it and make the thinnest plan. `outcome` is one of those of coverage_page.OUTCOMES.

    The facts are written to the folder before the blocks are tried, so that nothing is lost if that takes too long.
    """
    _enter(folder, "build")
    started = time.monotonic()
    try:
        module, example = build(name)
    except NotBuilt as problem:
        return {"outcome": "not built", "reason": str(problem)}
    facts: dict[str, Any] = {"side": example.shape[-1], "params": sum(value.numel() for value in module.parameters())}
    seconds = {"build": time.monotonic() - started}
    _limit_processor_time(limit_s)
    _enter(folder, "analysis")
    dense, began, busy = folder / "dense.onnx", time.time(), _processor_s()
    steps = Steps(folder)
    try:
        builder = start_builder(module, example, FORM, PruningSettings(), dense, steps)
        seconds["analysis"], facts["processor_s"] = time.time() - began, round(_processor_s() - busy, 2)
        seconds["export"] = dense.stat().st_mtime - began  # it is written right after the export
        seconds |= steps.seconds()
        facts |= _space(builder)
        _enter(folder, "thinnest plan")
        began = time.time()
        facts |= _thinnest(builder)
        seconds["thinnest plan"] = time.time() - began
        _write(folder, facts | {"seconds": _rounded(seconds)})
        facts |= _blocks(builder, module, dense)
    except Exception as problem:
        facts |= failure(problem)
        facts.setdefault("processor_s", round(_processor_s() - busy, 2))
    facts["seconds"] = _rounded(seconds)
    facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return facts


class Steps:
    """Notes when each step of the analysis began, for the seconds of each and for a process that is ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.began: dict[str, float] = {}

    def __call__(self, done: int, total: int, text: str) -> None:
        """Note that the step `text` goes on."""
        if text not in self.began:
            self.began[text] = time.monotonic()
            _enter(self.folder, f"analysis, {text}")

    def seconds(self) -> dict[str, float]:
        """Seconds of each step but the last, which only says that the analysis is over."""
        starts = list(self.began.values())
        return {text: end - start for text, start, end in zip(self.began, starts, starts[1:], strict=False)}


def _space(builder: PrunedModelBuilder) -> dict[str, Any]:
    return {
        "outcome": "proven",
        "origin": builder.network.origin,
        "reason": builder.proof,
        "groups": len(builder.space.groups),
        "not_prunable": reasons(builder.space),
    }


def reasons(space: PruneSpace) -> list[tuple[str, int, list[str]]]:
    """Each kind of reason why layers are not prunable, with their number and the first names; the most frequent first."""
    kinds = sorted(by_kind(space), key=lambda layers: -len(layers))
    return [(layers[0].reason, len(layers), [layer.name for layer in layers[:NAMES]]) for layers in kinds[:REASONS]]


def _thinnest(builder: PrunedModelBuilder) -> dict[str, Any]:
    """Figures of the thinnest plan that a search may choose, and how far its file is from the torch network."""
    whole, thin = builder.make(builder.space.dense()), builder.make(thinnest(builder.space))
    before, after = layer_widths(load_graph(whole.data)), layer_widths(load_graph(thin.data))
    pruned = [name for name, width in before.items() if after.get(name, width) < width]
    return {
        "params_left": thin.params / max(whole.params, 1),
        "macs_left": thin.macs / max(whole.macs, 1),
        "macs": whole.macs,
        "deployed_layers": len(before),
        "deployed_layers_prunable": len(pruned),
        "difference": float(largest_difference(thin.answers, all_outputs(thin.data, arrays_in(builder.example)))),
    }


def _blocks(builder: PrunedModelBuilder, module: nn.Module, dense: Path) -> dict[str, Any]:
    """How many blocks can leave the network: the proof on the graph passed. `blocks_tried` counts the others too."""
    try:
        model = load_graph(dense.read_bytes())
        match_weights(model, module.state_dict())
        name_nodes(model)
        labelled = builder.network.trainable.labelled
        found, refused = find_blocks(model, labelled.space.groups)
        proven, unproven = prove_blocks(model, labelled.with_blocks(found, refused))
    except Exception as problem:
        return {"blocks_failure": f"{type(problem).__name__}: {one_line(problem)}"}
    return {"blocks": len(proven), "blocks_tried": len(proven) + len(unproven) + len(refused)}


def thinnest(space: PruneSpace) -> ChannelPlan:
    """The narrowest width of each group: a thirty-second of its channels, and at least one."""
    return ChannelPlan.of({group.name: widths_of(group.channels, group.bundle, 1)[0] for group in space.groups})


def layer_widths(model: onnx.ModelProto) -> Mapping[str, int]:
    """Name of each weight of a convolution or matrix product -> its number of outputs."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    widths = {}
    for node in model.graph.node:
        name = node.input[1] if len(node.input) > 1 else ""
        if name not in weights or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(node.op_type)
        if axis is None:
            axis = 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
        if len(weights[name]) > 1:
            widths[name] = weights[name][axis]
    return widths


def failure(problem: Exception) -> dict[str, Any]:
    """The outcome of a network whose analysis raised `problem`, and the reason."""
    if isinstance(problem, NothingToPrune):
        return {"outcome": "nothing to prune", "reason": str(problem)}
    if isinstance(problem, CompressError):
        return {"outcome": "refused", "reason": str(problem), "exit_code": problem.exit_code}
    text = f"{type(problem).__name__}: {one_line(problem)}"
    if isinstance(problem, MemoryError) or any(words in str(problem) for words in NO_MEMORY):
        return {"outcome": "too much memory", "reason": text}
    frames = traceback.extract_tb(problem.__traceback__)
    ours = [frame for frame in frames if "/pipeline/" in frame.filename] or frames
    place = f"pipeline/{ours[-1].filename.rpartition('/pipeline/')[2]}:{ours[-1].lineno} in {ours[-1].name}"
    return {"outcome": "traceback", "reason": f"{text} ({place})"}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(value, 2) for phase, value in seconds.items()}


def _write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the result, so that a process that is ended leaves the old one or the new one."""
    (folder / "result.new").write_text(json.dumps(facts))
    (folder / "result.new").replace(folder / "result.json")


def _enter(folder: Path, phase: str) -> None:
    (folder / "phase").write_text(phase)


def _processor_s() -> float:
    """Processor time of this process and of those that it waited for."""
    return sum(
        resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def _limit_processor_time(limit_s: float) -> None:
    """End this process after `limit_s` more seconds of processor time. Where it was then is printed."""
    faulthandler.register(signal.SIGXCPU, chain=True)
    end = int(time.process_time() + limit_s)
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))


def main() -> None:
    """Examine the network that the command line names."""
    name, folder, limit_s, memory_gib = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive coverage.py
    memory_bytes = int(memory_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _write(folder, examine(name, folder, limit_s))


if __name__ == "__main__":
    main()
