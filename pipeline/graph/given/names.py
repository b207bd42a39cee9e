"""Names: weights get the names of their layers, as in torch: 'layer1.0.conv1.weight'."""

import re

import onnx

from pipeline.graph.edit import free_name, names_in, rename_uses

__all__ = ["layer_name_of", "name_layers"]

ROLES = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "MatMul": {1: "weight"},
    "BatchNormalization": {1: "weight", 2: "bias", 3: "running_mean", 4: "running_var"},
    "InstanceNormalization": {1: "weight", 2: "bias"},
    "LayerNormalization": {1: "weight", 2: "bias"},
    "GroupNormalization": {1: "weight", 2: "bias"},
    "PRelu": {1: "weight"},
}
"""Operator -> what its inputs are called in torch."""
OPERATORS = {"Conv2D", "DepthwiseConv2dNative", "depthwise", "BiasAdd", "FusedBatchNormV3", "ReadVariableOp", *ROLES}
"""Last parts of a node's name that say only what it does."""
WRAPPERS = {"StatefulPartitionedCall", "PartitionedCall"}


def name_layers(model: onnx.ModelProto) -> None:
    """Name the initializers that layers read after their layers, in place. One that several layers read keeps the first name."""
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    taken, layers = names_in(graph), set[str]()
    named: dict[str, str] = {}
    for node in graph.node:
        roles = ROLES.get(node.op_type, {}) if node.domain in ("", "ai.onnx") else {}
        weight = node.input[1] if len(node.input) > 1 else ""
        if weight not in initializers or weight in named:
            continue
        layer = free_name(layer_name_of(node.name, weight) or node.op_type.lower(), layers)
        layers.add(layer)
        for position, role in roles.items():
            old = node.input[position] if position < len(node.input) else ""
            if old in initializers and old not in named:
                wanted = f"{layer}.{role}"
                named[old] = old if old == wanted else free_name(wanted, taken)
                taken.add(named[old])
    rename_uses(graph, {old: new for old, new in named.items() if old != new})
    for tensor in graph.initializer:
        tensor.name = named.get(tensor.name, tensor.name)


def layer_name_of(node: str, weight: str) -> str:
    """The name of a layer from the names of its node and its weight. torch writes '/layer1/layer1.0/conv1/Conv' for the node, and
    TensorFlow 'model/block1/conv1/Conv2D'. Empty if neither is a name.

    >>> layer_name_of("/layer1/layer1.0/conv1/Conv", "onnx::Conv_193"), layer_name_of("Conv_0", "features.0.weight")
    ('layer1.0.conv1', 'features.0')
    """
    if weight.endswith(".weight"):
        return _clean(weight.removesuffix(".weight"))
    parts = [part for part in node.split("/") if part and part not in WRAPPERS]
    while len(parts) > 1 and re.sub(r"_\d+$", "", parts[-1]) in OPERATORS:
        parts.pop()
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part  # torch repeats the names of lists
        else:
            path.append(part)
    return _clean(".".join(path))


def _clean(name: str) -> str:
    """`name` with only letters, digits, '_' and single dots."""
    parts = (re.sub(r"\W+", "_", part).strip("_") for part in name.split("."))
    return ".".join(part for part in parts if part)
