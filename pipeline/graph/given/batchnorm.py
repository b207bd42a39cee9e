"""BatchNorm: put a BatchNormalization back behind each convolution from which an exporter folded one away, and base all of them
on the statistics of real images.

A layer then normalises by the mean and variance that its input has on these images, and its scale and bias make up for it. So the
network computes what it computed before, also after its statistics are re-estimated on such images. A pruned network gets its own
statistics in the same way, and it trains like any network with BatchNorm. When the deployed graph is made, the layers are folded
away.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from pipeline.core.batch import Inputs
from pipeline.graph.edit import copy_of, free_name, names_in, uses_of
from pipeline.graph.given.door import copied
from pipeline.graph.metadata import opset_of
from pipeline.graph.shapes import shapes_of
from pipeline.graph.to_torch import network_of

__all__ = ["has_weights_of", "with_batchnorms"]

EPSILON = 1e-5
ROLES = ("weight", "bias", "running_mean", "running_var")


def with_batchnorms(model: onnx.ModelProto, batches: Iterable[Inputs]) -> onnx.ModelProto:
    """Return `model`, a trainable graph, with a BatchNormalization behind each convolution that may have had one.

    That is a convolution with a bias and a weight of its own, whose maps have more than one pixel, and whose output no other
    BatchNormalization reads. `batches` of real inputs, (N, C, H, W), give the statistics of all these layers, also of those that
    were in `model` before. The result computes what `model` computes.
    """
    normed = copy_of(model)
    _insert(normed)
    network = network_of(normed)
    modules = dict(network.named_modules())
    layers = list(_layers(normed))
    moments = [_Moments(modules[network.tensors[node.input[3]].name.rpartition(".")[0]]) for node in layers]
    with torch.no_grad():
        for pixels in batches:
            network(pixels)
    tensors = {tensor.name: tensor for tensor in normed.graph.initializer}
    for node, found in zip(layers, moments, strict=True):
        names = node.input[1:5]
        scale, bias, mean, variance = (numpy_helper.to_array(tensors[name]).astype(np.float64) for name in names)
        epsilon = next((float(entry.f) for entry in node.attribute if entry.name == "epsilon"), EPSILON)
        slope = scale / np.sqrt(variance + epsilon)
        new_mean, new_variance = found.read()
        values = (slope * np.sqrt(new_variance + epsilon), bias + (new_mean - mean) * slope, new_mean, new_variance)
        for name, array in zip(names, values, strict=True):
            tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    return normed


def has_weights_of(normed: onnx.ModelProto, model: onnx.ModelProto) -> bool:
    """Whether `normed` can be what `with_batchnorms` made of `model`: all tensors but those of BatchNorm layers are equal."""
    found = {tensor.name: tensor for tensor in normed.graph.initializer}
    based = {name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[1:5]}
    return all(
        tensor.name in based or (tensor.name in found and found[tensor.name] == tensor) for tensor in model.graph.initializer
    )


def _layers(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The BatchNormalization nodes whose tensors are initializers of their own."""
    tensors, uses = {tensor.name for tensor in model.graph.initializer}, uses_of(model.graph)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and all(name in tensors and uses[name] == 1 for name in node.input[1:5]):
            yield node


class _Moments:
    """Mean and variance of each channel of what a layer reads, over all images and pixels."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self.sum: Tensor | None = None
        self.squares: Tensor | None = None
        module.register_forward_pre_hook(self._add)

    def _add(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().movedim(1, 0).flatten(1)
        self.count += values.shape[1]
        self.sum = values.sum(1) + (0 if self.sum is None else self.sum)
        self.squares = values.square().sum(1) + (0 if self.squares is None else self.squares)

    def read(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.sum is None or self.squares is None:
            raise ValueError("there were no inputs")
        mean = self.sum / self.count
        return mean.numpy(), (self.squares / self.count - mean.square()).clamp_min(0).numpy()


def _insert(model: onnx.ModelProto) -> None:
    """Insert layers that change nothing, in place."""
    graph = model.graph
    taken, nodes = names_in(graph), []
    wanted = {node.output[0]: node for node in _convolutions(model)}
    sizes = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    for original in graph.node:
        node = copied(original)
        nodes.append(node)
        if not node.output or node.output[0] not in wanted:
            continue
        layer = f"{node.input[1].removesuffix('.weight')}_norm"
        names = [free_name(f"{layer}.{role}", taken) for role in ROLES]
        output, inner = node.output[0], free_name(f"{layer}.input", taken)
        taken |= {*names, inner}
        channels = sizes[node.input[2]]
        scale = np.full(channels, np.sqrt(1 + EPSILON), dtype=np.float32)
        zeros, ones = np.zeros(channels, dtype=np.float32), np.ones(channels, dtype=np.float32)
        for name, values in zip(names, (scale, zeros, zeros, ones), strict=True):
            graph.initializer.append(numpy_helper.from_array(values, name))
        node.output[0] = inner
        nodes.append(helper.make_node("BatchNormalization", [inner, *names], [output], name=layer, epsilon=EPSILON))
    del graph.node[:]
    graph.node.extend(nodes)


def _convolutions(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    graph = model.graph
    tensors = {tensor.name for tensor in graph.initializer}
    uses, shapes = uses_of(graph), shapes_of(model)
    normed = {node.input[0] for node in graph.node if node.op_type == "BatchNormalization"}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.input) < 3 or opset_of(model) < 9:
            continue
        own = all(name in tensors and uses[name] == 1 for name in node.input[1:3])
        pixels = shapes.get(node.output[0], ())[2:]
        if own and np.prod(pixels) > 1 and not {node.output[0]} & (normed | outputs):
            yield node
