"""Layers: the nodes that become torch modules, because the rest of the program looks for these modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.graph.to_torch.node import Node
from pipeline.graph.to_torch.places import Places
from pipeline.graph.to_torch.steps import ConvStep, ConvTransposeStep, LayerStep

__all__ = ["Graph", "layer_of"]

_CONVS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_BATCH_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE_NORMS: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


@dataclass
class Graph:
    """What is known of the graph while its layers are made."""

    places: Places
    ranks: Mapping[str, int]
    """Value -> number of axes, where that is known."""
    literals: Mapping[str, Tensor]
    """Values of initializers and constants."""
    biases: Mapping[int, tuple[str, str]]
    """Index of a MatMul -> (bias, output) of the Add behind it, if that is the only reader and adds one number per column."""
    made: dict[tuple[object, ...], tuple[nn.Module, str]] = field(default_factory=dict)
    """What defines a layer -> the layer and its name. Nodes with the same definition share the layer."""

    def weight(self, node: Node, position: int) -> Tensor | None:
        """The initializer at an input, or None if that input is absent or computed."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        return self.places.initializers.get(name)

    def given(self, node: Node, position: int) -> bool:
        """Whether the node has this input."""
        return position < len(node.inputs) and node.inputs[position] != ""


Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a layer's tensor -> (initializer, layout)."""


def layer_of(node: Node, graph: Graph) -> LayerStep | None:
    """The step of a node that becomes a module, or None if the node stays a function."""
    maker = _MAKERS.get(node.op)
    return None if maker is None else maker(node, graph)


def _layer(node: Node, graph: Graph, tensors: Tensors, make: Callable[[], nn.Module]) -> nn.Module | None:
    """Make a layer with its tensors in place. None if an initializer is already placed in another layout."""
    names = [name for name, _ in tensors.values()]
    if not all(graph.places.fits(name, axes) for name, axes in tensors.values()):
        return None
    if len(set(names)) < len(names):
        return None
    key = (node.op, tuple(tensors.items()), tuple(sorted((name, str(value)) for name, value in node.attributes.items())))
    if key in graph.made:
        return graph.made[key][0]
    module = make()
    first = tensors.get("weight", (node.name, ()))[0]
    path = graph.places.put_module(first.removesuffix(".weight"), module)
    for attribute, (name, axes) in tensors.items():
        graph.places.put(module, path, attribute, name, axes)
    graph.made[key] = (module, path)
    return module


def _plain(*names: tuple[str, str], graph: Graph) -> Tensors:
    """Tensors that have the initializers' own layout."""
    return {attribute: (name, tuple(range(graph.places.initializers[name].dim()))) for attribute, name in names}


def _step(kind: type[LayerStep], node: Node, module: nn.Module | None) -> LayerStep | None:
    return None if module is None else kind(node, node.inputs[:1], node.outputs[:1], module)


def _conv(node: Node, graph: Graph) -> LayerStep | None:
    weight, bias = graph.weight(node, 1), graph.weight(node, 2)
    if weight is None or weight.dim() not in _CONVS or (graph.given(node, 2) and bias is None):
        return None
    kernel = tuple(weight.shape[2:])
    ones = [1] * len(kernel)
    pads = node.ints("pads") or [0] * (2 * len(kernel))
    auto = node.text("auto_pad", "NOTSET")
    plain = auto == "VALID" or (auto == "NOTSET" and pads[: len(kernel)] == pads[len(kernel) :])
    padding = tuple(pads[: len(kernel)]) if plain and auto == "NOTSET" else (0,) * len(kernel)
    group = node.int("group", 1)

    def make() -> nn.Module:
        return _CONVS[weight.dim()](
            weight.shape[1] * group,
            weight.shape[0],
            kernel,
            stride=tuple(node.ints("strides") or ones),
            padding=padding,
            dilation=tuple(node.ints("dilations") or ones),
            groups=group,
            bias=bias is not None,
            device="meta",
        )

    module = _layer(node, graph, _weights(node, graph), make)
    return _step(LayerStep if plain else ConvStep, node, module)


def _weights(node: Node, graph: Graph) -> Tensors:
    """Weight and, if the node has one, bias."""
    names = [("weight", node.inputs[1])] + ([("bias", node.inputs[2])] if graph.given(node, 2) else [])
    return _plain(*names, graph=graph)


def _conv_transpose(node: Node, graph: Graph) -> LayerStep | None:
    weight, bias = graph.weight(node, 1), graph.weight(node, 2)
    if weight is None or weight.dim() not in _TRANSPOSED or (graph.given(node, 2) and bias is None):
        return None
    kernel = tuple(weight.shape[2:])
    count = len(kernel)
    ones = [1] * count
    pads = node.ints("pads") or [0] * (2 * count)
    automatic = node.text("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes
    plain = not automatic and pads[:count] == pads[count:]
    group = node.int("group", 1)

    def make() -> nn.Module:
        return _TRANSPOSED[weight.dim()](
            weight.shape[0],
            weight.shape[1] * group,
            kernel,
            stride=tuple(node.ints("strides") or ones),
            padding=tuple(pads[:count]) if plain else 0,
            output_padding=tuple(node.ints("output_padding") or [0] * count),
            groups=group,
            bias=bias is not None,
            dilation=tuple(node.ints("dilations") or ones),
            device="meta",
        )

    module = _layer(node, graph, _weights(node, graph), make)
    return _step(LayerStep if plain else ConvTransposeStep, node, module)


def _bias_layout(bias: Tensor | None, columns: int) -> tuple[int, ...] | None:
    """The layout of a bias that has one number per column, possibly with leading axes of length 1. None for other shapes."""
    if bias is None or bias.dim() == 0 or bias.shape[-1] != columns or bias.numel() != columns:
        return None
    return (*[-1] * (bias.dim() - 1), 0)


def _gemm(node: Node, graph: Graph) -> LayerStep | None:
    weight, bias = graph.weight(node, 1), graph.weight(node, 2)
    scaled = node.float("alpha", 1.0) != 1 or (graph.given(node, 2) and node.float("beta", 1.0) != 1)
    if weight is None or weight.dim() != 2 or scaled or node.int("transA", 0):
        return None
    transposed = bool(node.int("transB", 0))
    rows, columns = weight.shape if transposed else tuple(reversed(weight.shape))
    tensors: Tensors = {"weight": (node.inputs[1], (0, 1) if transposed else (1, 0))}
    if graph.given(node, 2):
        layout = _bias_layout(bias, rows)
        if layout is None:
            return None
        tensors["bias"] = (node.inputs[2], layout)
    module = _layer(node, graph, tensors, lambda: nn.Linear(columns, rows, bias="bias" in tensors, device="meta"))
    return _step(LayerStep, node, module)


def _matmul(node: Node, graph: Graph) -> LayerStep | None:
    weight = graph.weight(node, 1)
    if weight is None or weight.dim() != 2:
        return None
    columns, rows = weight.shape
    tensors: Tensors = {"weight": (node.inputs[1], (1, 0))}
    outputs = node.outputs
    if node.index in graph.biases:
        name, output = graph.biases[node.index]
        layout = _bias_layout(graph.places.initializers[name], rows)
        if layout is not None and graph.places.fits(name, layout):
            tensors["bias"], outputs = (name, layout), (output,)
    module = _layer(node, graph, tensors, lambda: nn.Linear(columns, rows, bias="bias" in tensors, device="meta"))
    return None if module is None else LayerStep(node, node.inputs[:1], outputs, module)


def _batch_norm(node: Node, graph: Graph) -> LayerStep | None:
    kind = _BATCH_NORMS.get(graph.ranks.get(node.inputs[0], 0))
    known = [graph.weight(node, position) for position in range(1, 5)]
    if kind is None or any(tensor is None for tensor in known) or (any(node.outputs[1:]) and not node.int("training_mode", 0)):
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    of_batch = bool(node.int("training_mode", 0))
    tensors = _plain(*zip(names[: 2 if of_batch else 4], node.inputs[1:], strict=False), graph=graph)
    shared = any(name in graph.places.tensors for name in node.inputs[3:5])
    momentum = round(1 - node.float("momentum", 0.9), 6)
    features, epsilon = len(known[0] if known[0] is not None else ()), node.float("epsilon", 1e-5)

    def make() -> nn.Module:
        rate = momentum if 0 < momentum < 1 else 0.1
        module = kind(features, eps=epsilon, momentum=rate, track_running_stats=not of_batch, device="meta")
        if not of_batch:
            module.register_buffer("num_batches_tracked", torch.tensor(0))
        return module

    if shared and not _is_made(node, graph, tensors):
        return None  # statistics that belong to another layer are only read
    return _step(LayerStep, node, _layer(node, graph, tensors, make))


def _is_made(node: Node, graph: Graph, tensors: Tensors) -> bool:
    key = (node.op, tuple(tensors.items()), tuple(sorted((name, str(value)) for name, value in node.attributes.items())))
    return key in graph.made


def _layer_norm(node: Node, graph: Graph) -> LayerStep | None:
    scale, bias, rank = graph.weight(node, 1), graph.weight(node, 2), graph.ranks.get(node.inputs[0])
    if scale is None or rank is None or (graph.given(node, 2) and bias is None) or any(node.outputs[1:]):
        return None
    axis = node.int("axis", -1)
    if scale.dim() != (-axis if axis < 0 else rank - axis) or (bias is not None and bias.shape != scale.shape):
        return None
    shape, epsilon = list(scale.shape), node.float("epsilon", 1e-5)

    def make() -> nn.Module:
        return nn.LayerNorm(shape, eps=epsilon, bias=bias is not None, device="meta")

    return _step(LayerStep, node, _layer(node, graph, _weights(node, graph), make))


def _instance_norm(node: Node, graph: Graph) -> LayerStep | None:
    scale, bias, kind = graph.weight(node, 1), graph.weight(node, 2), _INSTANCE_NORMS.get(graph.ranks.get(node.inputs[0], 0))
    if scale is None or bias is None or kind is None:
        return None
    features, epsilon = len(scale), node.float("epsilon", 1e-5)
    module = _layer(node, graph, _weights(node, graph), lambda: kind(features, eps=epsilon, affine=True, device="meta"))
    return _step(LayerStep, node, module)


def _group_norm(node: Node, graph: Graph) -> LayerStep | None:
    scale, bias = graph.weight(node, 1), graph.weight(node, 2)
    groups, epsilon = node.int("num_groups", 1), node.float("epsilon", 1e-5)
    if scale is None or bias is None or node.opset < 21:
        return None
    channels = len(scale)
    module = _layer(node, graph, _weights(node, graph), lambda: nn.GroupNorm(groups, channels, eps=epsilon, device="meta"))
    return _step(LayerStep, node, module)


def _prelu(node: Node, graph: Graph) -> LayerStep | None:
    slope, rank = graph.weight(node, 1), graph.ranks.get(node.inputs[0])
    if slope is None:
        return None
    shape = list(slope.shape)
    long = [axis for axis, size in enumerate(shape) if size != 1]
    if not long:
        place = max(len(shape) - 1, 0)
    elif len(long) == 1 and rank is not None and len(shape) - long[0] == rank - 1:
        place = long[0]  # one slope per channel
    else:
        return None
    if not shape:
        return None
    axes = tuple(0 if axis == place else -1 for axis in range(len(shape)))
    count = slope.numel()
    module = _layer(node, graph, {"weight": (node.inputs[1], axes)}, lambda: nn.PReLU(count, device="meta"))
    return _step(LayerStep, node, module)


def _dropout(node: Node, graph: Graph) -> LayerStep | None:
    if any(node.outputs[1:]):
        return None
    ratio = graph.literals.get(node.inputs[1]) if graph.given(node, 1) else None
    share = node.float("ratio", 0.5) if ratio is None else round(float(ratio), 6)
    module = nn.Dropout(share)
    graph.places.put_module(node.name, module)
    return _step(LayerStep, node, module)


_MAKERS: dict[str, Callable[[Node, Graph], LayerStep | None]] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "PRelu": _prelu,
}
