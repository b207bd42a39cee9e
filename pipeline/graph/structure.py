"""Structure: a hash of a graph's ops, attributes and shapes, blind to names and to the values of weights."""

import hashlib
from collections.abc import Iterator
from typing import Any

import onnx

__all__ = ["load_graph", "structure"]


def structure(model: onnx.ModelProto) -> str:
    """Two graphs with the same structure cost a runtime the same: it sees ops, attributes and shapes.

    Names, weights and the order of independent nodes do not matter; nor does how a Reshape spells its target,
    because that follows from the shapes around it.
    """
    hashes = {value.name: _hash("input", _shape(value)) for value in model.graph.input}
    for tensor in model.graph.initializer:
        hashes[tensor.name] = _hash("weight", tensor.data_type, list(tensor.dims), _small_integers(tensor))
    for node in model.graph.node:
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


def load_graph(data: bytes) -> onnx.ModelProto:
    """`data` as a graph that holds all its weights itself. Raises ValueError for external data."""
    model = onnx.load_model_from_string(data)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise ValueError("the ONNX file keeps weights in other files; only single files are accepted")
    return model


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor below `message`, of protobuf, wherever the format has a place for one, now or in a later version."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in (value,) if hasattr(value, "ListFields") else value:
                if isinstance(inner, onnx.TensorProto):
                    yield inner
                else:
                    yield from _tensors(inner)


def _small_integers(tensor: onnx.TensorProto) -> str:
    """Values of integer tensors of a few entries: axes, sizes, pads."""
    if tensor.data_type != onnx.TensorProto.INT64 or len(tensor.dims) > 1 or sum(tensor.dims) > 16:
        return ""
    return str(onnx.numpy_helper.to_array(tensor).tolist())


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
