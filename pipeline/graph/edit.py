"""Edit: small changes to ONNX graphs. Each function takes a protobuf graph and also follows names into its subgraphs."""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import onnx

__all__ = [
    "attribute_of",
    "copy_of",
    "free_name",
    "keep_only",
    "names_in",
    "outline_of",
    "remove_bypasses",
    "remove_unused",
    "rename_uses",
    "subgraphs",
    "unique_name",
    "uses_of",
]


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def outline_of(model: onnx.ModelProto, hidden: Container[str]) -> onnx.ModelProto:
    """Return a copy of `model` in which the initializers of these names have shapes and no values."""
    outline = onnx.ModelProto()
    _copy_fields(model, outline, "graph")
    _copy_fields(model.graph, outline.graph, "initializer")
    for tensor in model.graph.initializer:
        if tensor.name in hidden:
            outline.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            outline.graph.initializer.append(tensor)
    return outline


def _copy_fields(source: Any, target: Any, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def attribute_of(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return the integer attribute `name` of `node`."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that `node` holds: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def uses_of(graph: onnx.GraphProto) -> Counter[str]:
    """Count how often each value is used: as an input of a node, also in subgraphs, or as an output of the graph."""
    uses = Counter(value.name for value in graph.output)
    for node in graph.node:
        uses.update(node.input)
        for inner in subgraphs(node):
            uses.update(uses_of(inner))
    return uses


def rename_uses(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Let every node, also in subgraphs, read the value `names[old]` where it reads `old`."""
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in names:
                node.input[position] = names[name]
        for inner in subgraphs(node):
            rename_uses(inner, names)
            for value in inner.output:
                value.name = names.get(value.name, value.name)


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values of `graph` and its subgraphs."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        names.update(node.input, node.output)
        for inner in subgraphs(node):
            names |= names_in(inner)
    return names


def free_name(wanted: str, taken: Container[str]) -> str:
    """Return `wanted`, or `wanted` with the first number that makes it a name that is not taken."""
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def remove_bypasses(graph: onnx.GraphProto) -> None:
    """Remove nodes that pass their input on: Identity, and Dropout at inference. Inputs and outputs keep their names."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses, produced = uses_of(graph), {name for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    sources: dict[str, str] = {}
    gone = []
    for node in graph.node:
        if not _passes_on(node, weights, uses):
            continue
        source, name = sources.get(node.input[0], node.input[0]), node.output[0]
        if name not in outputs:
            sources[name] = source
        elif source in produced and source not in outputs:
            sources = {old: name if new == source else new for old, new in sources.items()} | {source: name}
        else:  # two outputs, or an output and an input or a weight, need a node between them
            node.op_type = "Identity"
            del node.input[1:], node.output[1:], node.attribute[:]
            continue
        gone.append(node)
    bypassed = {node.output[0] for node in gone}
    keep_only(graph.node, lambda node: not (node.output and node.output[0] in bypassed))
    rename_uses(graph, sources)
    for node in graph.node:
        node.output[:] = [sources.get(name, name) for name in node.output]


def _passes_on(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], uses: Counter[str]) -> bool:
    if node.op_type == "Identity" and node.domain == "":
        return True
    if node.op_type != "Dropout" or node.domain or any(uses[mask] for mask in node.output[1:]):
        return False
    mode = node.input[2] if len(node.input) > 2 else ""
    return not mode or (mode in weights and not onnx.numpy_helper.to_array(weights[mode]).any())


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove from `graph` the initializers, constants and notes on shapes that nothing uses."""
    uses = uses_of(graph)
    keep_only(graph.node, lambda node: node.op_type != "Constant" or uses[node.output[0]] > 0)
    keep_only(graph.initializer, lambda tensor: uses[tensor.name] > 0)
    there = {name for node in graph.node for name in node.output}
    keep_only(graph.value_info, lambda value: value.name in there)


def keep_only(repeated: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove the elements of `repeated`, a field of a protobuf message, that are not `wanted`. Nothing is copied or compared."""
    for index in reversed(range(len(repeated))):
        if not wanted(repeated[index]):
            del repeated[index]


def unique_name(name: str, names: set[str]) -> str:
    """Return `name`, or `name#2` and so on if it is among `names`. The result is added to `names`."""
    made, number = name, 2
    while made in names:
        made, number = f"{name}#{number}", number + 1
    names.add(made)
    return made
