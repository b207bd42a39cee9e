"""Build: make the torch module of an ONNX graph, and write its weights back."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from pipeline.errors import TraceError, WeightsError, one_line
from pipeline.foreign_text import clean_text
from pipeline.graph.edit import copy_of
from pipeline.graph.metadata import opset_of
from pipeline.graph.to_torch.layers import Graph, layer_of
from pipeline.graph.to_torch.network import GraphNetwork
from pipeline.graph.to_torch.node import DTYPES, Node, Precision, as_tensor, described, node_of
from pipeline.graph.to_torch.ops import FUNCTIONS
from pipeline.graph.to_torch.places import Places, to_initializer
from pipeline.graph.to_torch.refusals import check_node, check_op
from pipeline.graph.to_torch.steps import FunctionStep, Step

__all__ = ["network_of", "write_back"]


def network_of(
    model: onnx.ModelProto, trainable: Container[str] | None = None, values: Mapping[str, Tensor] | None = None
) -> GraphNetwork:
    """Rebuild a torch module from an ONNX graph of opset 7 or later. The module is in evaluation mode.

    `trainable` names the initializers that become trained parameters. Without it, the weights, biases and scales of layers are
    trained, and other numbers in the graph are not. `values` are those of initializers that have none in the graph; the network
    shares their memory, and its parameters in another layout are views.

    Raises TraceError, with the node's name, when an op has no counterpart in torch.
    """
    graph = model.graph
    opset = opset_of(model)
    if opset < 7:
        raise TraceError(f"the graph has opset {opset}, and 7 or later is needed; export it again with a newer opset")
    given = values or {}
    initializers = {
        tensor.name: given[tensor.name] if tensor.name in given else as_tensor(tensor) for tensor in graph.initializer
    }
    inputs = [value for value in graph.input if value.name not in initializers]
    precision = Precision(_float_kind(inputs))
    nodes = [node_of(proto, index, opset, precision) for index, proto in enumerate(graph.node) if check_op(proto, index)]
    literals = {node.outputs[0]: _constant(node) for node in nodes if node.op == "Constant"}
    nodes = [node for node in nodes if node.op != "Constant"]

    for node in nodes:
        check_node(node)

    network = GraphNetwork(precision)
    floats = {name: values for name, values in initializers.items() if values.is_floating_point()}
    places = Places(network, floats, trainable, given)
    biases = dict(_biases(nodes, floats, {value.name for value in graph.output}))
    known = Graph(places, _ranks(model), {**initializers, **literals}, biases)
    network._steps = list(_steps(nodes, known))
    for name in floats:
        places.put_alone(name)
    network.tensors = {name: places.tensors[name] for name in floats}
    network.input_names = tuple(value.name for value in inputs)
    network.output_names = tuple(value.name for value in graph.output)
    network._shapes = tuple(_shape(value) for value in inputs)
    _give_values(network, places, {**initializers, **literals})
    return network.eval()


def write_back(network: GraphNetwork | Mapping[str, Tensor], model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of `model`, whole or sliced, whose float initializers have the network's values.

    A mapping is the state dict of the network that `network_of(model)` makes. Raises WeightsError when a tensor is missing or has
    another shape than in the graph.
    """
    if isinstance(network, GraphNetwork):
        tensors, state = network.tensors, network.state_dict()
    else:
        tensors, state = network_of(model).tensors, dict(network)
    result = copy_of(model)
    for proto in result.graph.initializer:
        if proto.name not in tensors:
            continue
        place = tensors[proto.name]
        if place.name not in state:
            raise WeightsError(
                f"the weights have no tensor '{clean_text(place.name, 80)}'; use those of the network of this graph"
            )
        values = to_initializer(state[place.name].detach().cpu(), place.axes)
        if list(values.shape) != list(proto.dims):
            raise WeightsError(
                f"'{clean_text(proto.name, 80)}' is {tuple(proto.dims)} in the graph and {tuple(values.shape)} in the network; "
                "prune both to the same widths"
            )
        proto.CopyFrom(_proto(values, proto))
    return result


def _proto(values: Tensor, like: onnx.TensorProto) -> onnx.TensorProto:
    if like.data_type == onnx.TensorProto.BFLOAT16:
        return helper.make_tensor(like.name, like.data_type, list(values.shape), values.float().flatten().tolist())
    return numpy_helper.from_array(values.to(DTYPES[like.data_type]).contiguous().numpy(), like.name)


def _float_kind(inputs: list[onnx.ValueInfoProto]) -> int:
    kinds = [value.type.tensor_type.elem_type for value in inputs]
    return next((kind for kind in kinds if kind in DTYPES and DTYPES[kind].is_floating_point), onnx.TensorProto.FLOAT)


_NUMBERS = {"value_float": torch.float32, "value_floats": torch.float32, "value_int": torch.int64, "value_ints": torch.int64}


def _constant(node: Node) -> Tensor:
    if "value" in node.attributes and isinstance(node.attributes["value"], Tensor):
        return node.attributes["value"]
    for name, dtype in _NUMBERS.items():
        if name in node.attributes:
            return torch.tensor(node.attributes[name], dtype=dtype)
    raise TraceError(f"{described(node)}: only numbers can be constants; export the network without texts and sparse tensors")


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim
    )


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    """The number of axes of every value for which ONNX's shape inference finds it. It does not get the values of weights."""
    body, whole = onnx.GraphProto(name=model.graph.name), model.graph
    body.node.extend(whole.node)
    body.input.extend(whole.input)
    body.output.extend(whole.output)
    body.value_info.extend(whole.value_info)
    inputs = {value.name for value in whole.input}
    for tensor in whole.initializer:
        if DTYPES.get(tensor.data_type) is torch.int64:
            body.initializer.append(tensor)
        elif tensor.name not in inputs:
            body.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    outline = helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)
    try:
        outline = onnx.shape_inference.infer_shapes(outline)
    except Exception as problem:
        raise TraceError(f"the shapes of the graph are contradictory: {one_line(problem)}") from None
    values = (*outline.graph.value_info, *outline.graph.input, *outline.graph.output)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values if value.type.tensor_type.HasField("shape")}


def _biases(nodes: list[Node], floats: Mapping[str, Tensor], outputs: set[str]) -> Iterator[tuple[int, tuple[str, str]]]:
    """(index of a MatMul, (bias, output)) for every Add that only adds one number per column to it."""
    readers = Counter(name for node in nodes for name in node.inputs)
    products = {node.outputs[0]: node for node in nodes if node.op == "MatMul" and node.inputs[1] in floats}
    for node in nodes:
        if node.op != "Add":
            continue
        for product, bias in (node.inputs, node.inputs[::-1]):
            made = products.get(product)
            if made and bias in floats and floats[bias].dim() == 1 and readers[product] == 1 and product not in outputs:
                yield made.index, (bias, node.outputs[0])


def _steps(nodes: list[Node], graph: Graph) -> Iterator[Step]:
    done: set[str] = set()
    for node in nodes:
        if node.op == "Add" and node.outputs[0] in done:
            continue
        layer = layer_of(node, graph)
        if layer is None:
            yield FunctionStep(node, node.inputs, node.outputs, FUNCTIONS[node.op])
        else:
            done |= set(layer.outputs)
            yield layer


def _give_values(network: GraphNetwork, places: Places, values: Mapping[str, Tensor]) -> None:
    """Give the network the initializers and constants that functions read, and say after which step each value is unused."""
    read = {name for step in network._steps for name in step.inputs} | set(network.output_names)
    for name in sorted(read & set(values)):
        if name in places.tensors:
            network._reads[name] = places.home(name)
        elif values[name].is_floating_point():
            attribute = f"literal_{len(network._reads)}"
            network._precision.register_buffer(attribute, values[name], persistent=False)
            network._reads[name] = (network._precision, attribute, tuple(range(values[name].dim())))
        else:
            network._constants[name] = values[name]
    network._note_last_uses()
