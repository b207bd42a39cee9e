"""Export: convert a torch module to a single ONNX file, with the first exporter whose graph gives the right output."""

from collections.abc import Mapping

import onnx
import torch
from torch import Tensor, nn

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.errors import TraceError, one_line
from pipeline.graph.difference import first_difference
from pipeline.graph.exporters import EXPORTERS, INPUT, OUTPUT, Exporter, NotExported

__all__ = ["INPUT", "METADATA", "OUTPUT", "SCOPES", "export", "exporter_of", "opset_of", "stamp", "stripped"]

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which the exporter stores the module that a node came from; slicing needs it."""
METADATA = "edge_compress."
"""Prefix of every key that this program writes into a file's metadata."""
LIMIT_BYTES = 2**31 - 2**20
"""Largest size of all weights together. A protobuf message, and so an ONNX file, holds less than 2 GiB."""


def export(
    module: nn.Module,
    example: Tensor,
    opset: int,
    ir_version: int,
    highest_opset: int | None = None,
    exporters: Mapping[str, Exporter] = EXPORTERS,
) -> onnx.ModelProto:
    """Export `module`, in evaluation mode, to an ONNX graph for inputs of exactly the shape of `example`, (N, C, H, W).

    The exporters are tried in turn until a graph gives the module's output; `exporter_of` returns which one made it. If the
    network needs a higher opset, up to `highest_opset` (default: `opset`) is accepted. Only `SCOPES` is kept of the exporter's
    metadata, because the rest holds local paths. Raises TraceError, with the first wrong node, when every exporter fails.
    """
    _refuse_giants(module)
    training = module.training
    module.eval()
    complaints: list[str] = []
    remedy = f"{next(iter(exporters))} must accept it"
    try:
        for name, exporter in exporters.items():
            try:
                model = exporter(module, example, opset)
            except NotExported as problem:
                complaints.append(str(problem))
                continue
            _refuse_other_doors(model)
            complaint = _wrong_operators(model, opset, highest_opset or opset) or _wrong_answers(module, model, example)
            if complaint is None:
                _keep_only_scopes(model)
                stamp(model, {"exporter": name})
                model.ir_version = ir_version if ir_version >= 10 else 10
                return model
            complaints.append(complaint)
            remedy = "write that part of the network in another way"
    finally:
        module.train(training)
    ways = "; the other exporter: ".join(complaints)
    raise TraceError(f"the network cannot be exported to ONNX: {ways}; {remedy}")


def stamp(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Write `facts` into the metadata of `model`, with METADATA before each key. Existing values of the same key are replaced."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    known.update({f"{METADATA}{key}": value for key, value in facts.items()})
    del model.metadata_props[:]
    for key in sorted(known):
        model.metadata_props.add(key=key, value=known[key])


def exporter_of(model: onnx.ModelProto) -> str:
    """Return the name of the exporter that made `model`, or "not known"."""
    return next((entry.value for entry in model.metadata_props if entry.key == f"{METADATA}exporter"), "not known")


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of the standard operators in `model`; 0 when the file does not state one."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def stripped(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """Return a copy for measuring and shipping: without node metadata and inferred shapes, with the device's IR version."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        del node.metadata_props[:]
    del copy.graph.value_info[:]
    copy.ir_version = ir_version
    return copy


def _refuse_giants(module: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    if size > LIMIT_BYTES:
        raise TraceError(
            f"the network's weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2; use a smaller one"
        )


def _refuse_other_doors(model: onnx.ModelProto) -> None:
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise TraceError(
            f"the network takes {len(model.graph.input)} inputs and gives {len(model.graph.output)} outputs; "
            "wrap it so that one image batch goes in and one tensor comes out"
        )


def _wrong_operators(model: onnx.ModelProto, opset: int, highest_opset: int) -> str | None:
    """Why the device may not support the operators of `model`, or None when it supports them."""
    found = opset_of(model)
    if not opset <= found <= highest_opset:
        return f"it needs ONNX opset {found}, and the device reads, or the profile asks for, {highest_opset}; raise runtime.opset"
    others = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    return f"it needs operators of {', '.join(others)}, which not every onnxruntime has" if others else None


def _wrong_answers(module: nn.Module, model: onnx.ModelProto, example: Tensor) -> str | None:
    """How the outputs of graph and module differ for the example and its negative, or None when they agree."""
    data = model.SerializeToString()
    for inputs in (example, -example):
        with torch.no_grad():
            expected = module(inputs)
        if not torch.isfinite(expected).all():
            continue
        try:
            difference = largest_difference(expected.numpy(), run_onnx(data, inputs.numpy()))
        except Exception as problem:
            return f"ONNX Runtime does not run the exported graph: {one_line(problem, 200)}"
        if not difference <= TOLERANCE:
            where = first_difference(module, model, inputs)
            return f"the exported graph's answer is off by {100 * difference:.3g} % of the largest output, from node {where} on"
    return None


def _keep_only_scopes(model: onnx.ModelProto) -> None:
    graph = model.graph
    for node in graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.doc_string = ""
        for value in scopes:
            node.metadata_props.add(key=SCOPES, value=value)
    for holder in (model, graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del model.functions[:]
    model.producer_name, model.producer_version, model.domain, graph.name = "edge-compress", "", "", "network"
