"""Rewrite: small changes after which a foreign graph is written like one of torch's exporter."""

from collections import Counter

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper

from pipeline.graph.edit import keep_only, uses_of

__all__ = ["fuse_biases", "lift_weights"]


def lift_weights(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes that hold floats into initializers, in place. Some exporters write weights in this way."""
    lifted = set()
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        tensors = [entry.t for entry in node.attribute if entry.name == "value" and entry.type == AttributeProto.TENSOR]
        if tensors and tensors[0].data_type == TensorProto.FLOAT and sum(size > 1 for size in tensors[0].dims):
            graph.initializer.add().CopyFrom(tensors[0])
            graph.initializer[-1].name = node.output[0]
            lifted.add(node.output[0])
    keep_only(graph.node, lambda node: not (node.op_type == "Constant" and node.output[0] in lifted))


def fuse_biases(graph: onnx.GraphProto) -> None:
    """Give a convolution without bias the constants that an Add behind it adds to each channel, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    uses: Counter[str] = uses_of(graph)
    outputs = {value.name for value in graph.output}
    convs = {
        node.output[0]: node
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose") and (len(node.input) == 2 or not node.input[2]) and node.input[1] in tensors
    }
    gone = []
    for node in graph.node:
        if node.op_type != "Add" or len(node.input) != 2:
            continue
        for value, bias in (node.input, reversed(node.input)):
            conv, tensor = convs.get(value), tensors.get(bias)
            if conv is None or tensor is None or uses[value] != 1 or uses[bias] != 1 or value in outputs:
                continue
            if tensor.data_type == TensorProto.FLOAT and _is_per_channel(tensor, conv, tensors[conv.input[1]]):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).reshape(-1), tensor.name))
                conv.input[2:] = [tensor.name]
                gone.append((node, conv))
                break
    for add, conv in gone:
        conv.output[0] = add.output[0]
        graph.node.remove(add)


def _is_per_channel(bias: onnx.TensorProto, conv: onnx.NodeProto, weight: onnx.TensorProto) -> bool:
    """Whether `bias` has one number for each output channel, on the channel axis."""
    spatial = len(weight.dims) - 2
    groups = next((entry.i for entry in conv.attribute if entry.name == "group"), 1)
    channels = weight.dims[0] if conv.op_type == "Conv" else weight.dims[1] * groups
    shape = list(bias.dims)
    return shape[-spatial - 1 :] == [channels, *[1] * spatial] and shape[: -spatial - 1] in ([], [1])
