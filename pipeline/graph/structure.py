"""Structure: a hash of a graph's operators, attributes and shapes, without names and values of weights."""

import hashlib
from collections.abc import Iterator
from typing import Any

import onnx

__all__ = ["load_graph", "structure"]


def structure(model: onnx.ModelProto) -> str:
    """Return the hash. Graphs with equal hashes run equally fast: only operators, attributes and shapes count.

    Names, weights and the order of independent nodes are not part of the hash. Neither is the target of a Reshape,
    because it follows from the shapes around the node.
    """
    hashes = {value.name: _hash("input", _shape(value)) for value in model.graph.input}
    for tensor in model.graph.initializer:
        hashes[tensor.name] = _weight(tensor)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            hashes[node.output[0]] = _weight(
                node.attribute[0].t
            )  # constants of a slice are nodes, and those of a file initializers
            continue
        inputs = [hashes.get(name, "absent") for name in node.input]
        attributes = sorted(
            (attribute.name, attribute.SerializeToString(deterministic=True).hex())
            for attribute in node.attribute
            if attribute.name != "allowzero"
        )
        if node.op_type == "Reshape":
            inputs = inputs[:1]
        for position, name in enumerate(node.output):
            hashes[name] = _hash(node.domain, node.op_type, attributes, inputs, position)
    opsets = sorted((entry.domain, entry.version) for entry in model.opset_import)
    return _hash(opsets, [(hashes.get(value.name, "absent"), _shape(value)) for value in model.graph.output])


def _weight(tensor: onnx.TensorProto) -> str:
    return _hash("weight", tensor.data_type, list(tensor.dims), _small_integers(tensor))


def load_graph(data: bytes) -> onnx.ModelProto:
    """Parse `data` as a graph that contains all its weights. Raises ValueError for external data."""
    model = onnx.load_model_from_string(data)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise ValueError("the ONNX file keeps weights in other files; only single files are accepted")
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor inside the protobuf message `message`, in any field, also in fields of later versions of the format."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                if isinstance(inner, onnx.TensorProto):
                    yield inner
                else:
                    yield from _tensors(inner)


def _small_integers(tensor: onnx.TensorProto) -> str:
    """Values of small integer tensors, such as axes, sizes and pads; empty for other tensors."""
    if tensor.data_type != onnx.TensorProto.INT64 or len(tensor.dims) > 1 or sum(tensor.dims) > 16:
        return ""
    return str(onnx.numpy_helper.to_array(tensor).tolist())


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
