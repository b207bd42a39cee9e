"""Metadata: the facts that this program keeps in an ONNX file, and what it leaves out of files that are measured or shipped."""

import json
from collections.abc import Mapping

import onnx

from pipeline.graph.edit import copy_of

__all__ = [
    "CONSTANTS",
    "METADATA",
    "SCOPES",
    "constants_of",
    "exporter_of",
    "keep_only_own",
    "opset_of",
    "rename_constants",
    "stamp",
    "strip_notes",
    "stripped",
]

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata key under which the exporter stores the module that a node came from; see `pipeline.graph.module_names`."""
METADATA = "edge_compress."
"""Prefix of every key that this program writes into a file's metadata."""
_CONSTANTS = "constants"
CONSTANTS = f"{METADATA}{_CONSTANTS}"
"""Metadata key of an exported graph: the names of the float initializers that are not learnable, as a JSON list."""


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


def constants_of(model: onnx.ModelProto) -> frozenset[str] | None:
    """Return the names of the float initializers that are not learnable, such as running means and masks.

    None when the file does not say it: only trainable graphs, and what is made of them, do.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == CONSTANTS), None)
    return None if text is None else frozenset(str(name) for name in json.loads(text))


def rename_constants(model: onnx.ModelProto, renamed: Mapping[str, str]) -> None:
    """Follow new names of initializers, old -> new, in the list that `constants_of` returns, in place."""
    constants = constants_of(model)
    if constants is not None:
        stamp(model, {_CONSTANTS: json.dumps(sorted(renamed.get(name, name) for name in constants))})


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of the standard operators in `model`; 0 when the file does not state one."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def stripped(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """Return a copy for measuring and shipping: without node metadata and inferred shapes, with the device's IR version."""
    copy = copy_of(model)
    strip_notes(copy)
    copy.ir_version = ir_version
    return copy


def strip_notes(model: onnx.ModelProto) -> None:
    """Remove node metadata and inferred shapes from `model`, in place."""
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]


def keep_only_own(model: onnx.ModelProto) -> None:
    """Remove the metadata of `model`, in place, except SCOPES and what this program wrote. The rest holds local paths."""
    graph = model.graph
    for node in graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.doc_string = ""
        for value in scopes:
            node.metadata_props.add(key=SCOPES, value=value)
    facts = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(METADATA)}
    for holder in (model, graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    del model.functions[:]
    model.producer_name, model.producer_version, model.domain, graph.name = "edge-compress", "", "", "network"
