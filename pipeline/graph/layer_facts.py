"""Layer facts: what the layers of a deployed graph hold and compute, and to which group of channels their outputs belong."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx

from pipeline.core.node_times import NodeTime
from pipeline.graph.counts import layer_macs
from pipeline.graph.edit import attribute_of
from pipeline.graph.labels.space import GraphSpace, layer_name, module_of
from pipeline.graph.restrict import layers_of
from pipeline.graph.shapes import shapes_of

__all__ = ["LayerFacts", "layer_facts", "times_by_layer"]

PREFIX, SUFFIX = "fused ", "_nchwc"
"""ONNX Runtime adds these to the name of a node that it fuses, and of a value that it computes in blocks of channels."""
UNKNOWN = "'"
"""A place begins with this where only the node is known."""


@dataclass(frozen=True)
class LayerFacts:
    """One layer with weights, or one product of two activations."""

    name: str
    kind: str
    """Operator and kernel, such as 'Conv 3x3'."""
    outputs: tuple[int, ...]
    """Shape of the output, without the batch."""
    params: int
    macs: int
    groups: tuple[str, ...] = ()
    """The groups that its outputs belong to; none if it keeps its width."""
    reason: str = ""
    """Why it keeps its width."""
    latency_ms: float | None = None
    place: str = ""
    """Where a product of two activations is in the user's network: "MatMul in 'blocks.0.attn'"."""

    @property
    def title(self) -> str:
        """The name for people. The name of a product is that of a node, which means nothing to them."""
        return self.place or self.name


def layer_facts(model: onnx.ModelProto, labelled: GraphSpace, places: Mapping[str, str] | None = None) -> tuple[LayerFacts, ...]:
    """Return the layers of `model`, a deployed graph with its weights, in the order in which they run.

    `labelled` are its proven groups. `places`: node -> where it is in the user's network; see `places_of`. Raises TraceError when
    the operations cannot be counted.
    """
    shapes, counted = shapes_of(model), layer_macs(model)
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    groups: dict[str, list[str]] = defaultdict(list)
    for group in labelled.space.groups:
        for name in layers_of(group, labelled):
            groups[name].append(group.name)
    reasons = {layer.name.partition("#")[0]: layer.reason for layer in labelled.space.frozen}
    found: list[LayerFacts] = []
    for node in model.graph.node:
        weight = next((name for name in (*node.input[1:2], *node.input[:1]) if name in sizes), "")
        if (weight or node.name) not in counted:
            continue
        name = layer_name(weight) if weight else node.name
        other = "it keeps its width" if weight else "it has no channels of its own"
        reason = reasons.get(name) or reasons.get(module_of(weight)) or other
        own, where = tuple(dict.fromkeys(groups.get(name, ()))), (places or {}).get(node.name, "")
        found.append(
            LayerFacts(
                name,
                _kind(node, weight, shapes),
                shapes.get(node.output[0], (0,))[1:],
                sum(sizes[each] for each in node.input if each in sizes),
                counted.pop(weight or node.name),
                own,
                "" if own else reason,
                place="" if weight or where.startswith(UNKNOWN) else where,
            )
        )
    return tuple(found)


def times_by_layer(
    layers: Iterable[LayerFacts], times: Iterable[NodeTime], model: onnx.ModelProto
) -> tuple[tuple[LayerFacts, ...], dict[str, float]]:
    """Return `layers` with the `times` of their nodes, and the milliseconds of everything else by operator.

    A runtime fuses nodes, and names the result after one of them or after the value that it computes. So a time goes to the
    nearest layer from there towards the input.
    """
    layers = tuple(layers)
    owners = _owners(layers, model)
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes = {node.name: node for node in model.graph.node}
    summed: dict[str, float] = defaultdict(float)
    others: dict[str, float] = defaultdict(float)
    for time in times:
        start = time.name.removeprefix(PREFIX).removesuffix(SUFFIX)
        node = nodes.get(start) or makers.get(start)
        fused = time.operator.removeprefix("Fused")
        owner = _nearest(node, owners, makers, fused) if node is not None else None
        if owner is None:
            others[time.operator] += time.ms
        else:
            summed[owner] += time.ms
    timed = tuple(replace(layer, latency_ms=summed.get(layer.name, 0.0)) for layer in layers)
    return timed, dict(sorted(others.items(), key=lambda item: -item[1]))


def _owners(layers: tuple[LayerFacts, ...], model: onnx.ModelProto) -> dict[str, str]:
    """Output of a node -> the layer that the node is."""
    known = {layer.name for layer in layers}
    sizes = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        weight = next((name for name in (*node.input[1:2], *node.input[:1]) if name in sizes), "")
        name = layer_name(weight) if weight else node.name
        if name in known and node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"):
            found[node.output[0]] = name
    return found


def _nearest(node: onnx.NodeProto, owners: Mapping[str, str], makers: Mapping[str, onnx.NodeProto], operator: str) -> str | None:
    """The layer of this operator that is nearest to `node`, towards the input. None if `operator` is not a layer's."""
    if operator not in {makers[name].op_type for name in owners}:
        return None
    waiting, seen = deque([node]), {id(node)}
    while waiting:
        current = waiting.popleft()
        owner = next((owners[name] for name in current.output if name in owners), None)
        if owner is not None and current.op_type == operator:
            return owner
        for name in current.input:
            before = makers.get(name)
            if before is not None and id(before) not in seen:
                seen.add(id(before))
                waiting.append(before)
    return None


def _kind(node: onnx.NodeProto, weight: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if node.op_type not in ("Conv", "ConvTranspose"):
        return str(node.op_type)
    kernel = "x".join(str(size) for size in shapes.get(weight, ())[2:])
    groups = attribute_of(node, "group", 1)
    channels = shapes.get(node.input[0], (0, 0))[1]
    suffix = "" if groups == 1 else " depthwise" if groups == channels else f" in {groups} groups"
    return f"{node.op_type} {kernel}{suffix}"
