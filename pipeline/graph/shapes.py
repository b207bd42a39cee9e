"""Shapes: infer the shape of each value of an ONNX graph, without copying its weights."""

import math

import onnx

__all__ = ["FEW", "Shape", "shapes_of"]

Shape = tuple[int, ...]

FEW = 64
"""Tensors of up to this many values keep them, because they may be sizes or scales from which shapes follow."""


def shapes_of(model: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shape of each value of `model` whose sizes are all known: inputs, initializers, outputs of nodes.

    Floats may lack their values. Shapes that are noted in the file are not used, because a sliced file has other ones.
    """
    outline = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = outline.graph
    graph.name = "outline"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64 or math.prod(tensor.dims) <= FEW:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    inferred = onnx.shape_inference.infer_shapes(outline, data_prop=True).graph
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    return found
