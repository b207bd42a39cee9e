"""What the tests of rebuilt networks share: small graphs, ONNX's own evaluators as oracles, and comparisons."""

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from pipeline.core.onnx_outputs import open_session
from pipeline.graph.to_torch import GraphNetwork, network_of


def graph(text: str, weights: dict[str, NDArray[np.generic]] | None = None, opset: int = 18) -> onnx.ModelProto:
    """A model from ONNX's text form, with initializers. Their names may have dots, which the text form does not allow"""
    weights = weights or {}
    plain = {name: f"initializer_{place}" if "." in name else name for place, name in enumerate(weights)}
    for name in sorted(plain, key=len, reverse=True):
        text = text.replace(name, plain[name]) if "." in name else text
    dotted = {plain[name]: name for name in plain}
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> net {text}')
    for node in model.graph.node:
        node.input[:] = [dotted.get(name, name) for name in node.input]
    for name, values in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    return model


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one_node(
    op: str, *inputs: NDArray[np.generic] | None, opset: int = 18, outputs: int = 1, **attributes: object
) -> onnx.ModelProto:
    """A graph of one node. Float and boolean inputs are inputs of the graph; integers are initializers, as exporters write them."""
    names = [f"x{place}" if value is not None else "" for place, value in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{place}" for place in range(outputs)], **attributes)
    kinds = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    taken = {name: value for name, value in kinds.items() if value.dtype.kind in "fb"}
    given = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for name, v in taken.items()]
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in kinds.items() if name not in taken]
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
    body = helper.make_graph([node], "net", given, results, constants)
    return helper.make_model(body, ir_version=9, opset_imports=[helper.make_opsetid("", opset)])


def op_difference(op: str, *inputs: NDArray[np.generic] | None, opset: int = 18, outputs: int = 1, **attributes: object) -> float:
    """How far the rebuilt node is from ONNX's reference evaluator"""
    model = one_node(op, *inputs, opset=opset, outputs=outputs, **attributes)
    taken = [value for value in inputs if value is not None and value.dtype.kind in "fb"]
    return difference(by_torch(network_of(model), *taken), by_reference(model, *taken))


def runtime_difference(
    op: str, *inputs: NDArray[np.generic] | None, opset: int = 18, outputs: int = 1, **attributes: object
) -> float:
    """How far the rebuilt node is from ONNX Runtime. Its first output is float32 and its second int64"""
    model = one_node(op, *inputs, opset=opset, outputs=outputs, **attributes)
    taken = [value for value in inputs if value is not None and value.dtype.kind in "fb"]
    for value, kind in zip(model.graph.output, (onnx.TensorProto.FLOAT, onnx.TensorProto.INT64), strict=False):
        value.type.tensor_type.elem_type = kind
    return difference(by_torch(network_of(model), *taken), by_runtime(model, *taken))


def by_reference(model: onnx.ModelProto, *inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """The outputs by ONNX's reference evaluator, which is slow and plain"""
    names = [value.name for value in model.graph.input]
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))


def by_runtime(model: onnx.ModelProto, *inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """The outputs by ONNX Runtime"""
    session = open_session(model.SerializeToString(), threads=1)
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))


def by_torch(network: nn.Module, *inputs: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    with torch.no_grad():
        outputs = network(*(torch.from_numpy(np.array(value)) for value in inputs))
    return [value.numpy() for value in (outputs if isinstance(outputs, tuple) else (outputs,))]


def difference(found: list[NDArray[np.generic]], wanted: list[NDArray[np.generic]]) -> float:
    """The largest difference, as a share of the largest wanted value. Infinite if the shapes or kinds differ."""
    worst = 0.0
    for a, b in zip(found, wanted, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        scale = max(float(np.abs(np.where(np.isfinite(b), b, 0)).max(initial=0.0)), 1e-6) if b.dtype != bool else 1.0
        same = (a == b) | (np.isnan(a.astype(float)) & np.isnan(b.astype(float)))
        apart = np.where(same, 0.0, np.abs(a.astype(float) - b.astype(float)))
        worst = max(worst, float(apart.max(initial=0.0)) / scale)
    return worst


def batch_difference(network: GraphNetwork, batch: Tensor) -> float:
    """How far the outputs of a batch are from those of its images, one by one"""
    with torch.no_grad():
        together = network(batch)
        alone = [network(image[None]) for image in batch]
    pairs = zip(together, zip(*alone, strict=True), strict=True) if isinstance(together, tuple) else [(together, alone)]
    return max(difference([a.numpy()], [torch.cat(list(b)).numpy()]) for a, b in pairs)


def rebuilt(text: str, weights: dict[str, NDArray[np.generic]] | None = None, opset: int = 18) -> GraphNetwork:
    return network_of(graph(text, weights, opset))
