"""ONNX files as other programs write them."""

import io
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn


def traced(module: nn.Module, shape: tuple[int, ...], opset: int, **options: object) -> bytes:
    """`module` as torch's TorchScript exporter writes it: BatchNorm is folded, and weights have numbers for names."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(shape),),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            input_names=["pixels"],
            output_names=["scores"],
            verbose=False,
            **options,  # type: ignore[arg-type]
        )
    return buffer.getvalue()


def as_keras(opset: int = 13, kind: int = TensorProto.FLOAT, size: int | str = 12) -> bytes:
    """images (N, H, W, 3) -> to (N, 3, H, W) -> conv(32) -> relu -> conv(24) -> relu -> to (N, H, W, 24) -> mean -> matmul(4) + bias

    The Transposes, the names and the separate bias are those of Keras's converter.
    """
    generator = np.random.default_rng(0)
    weights = {
        "model/a/Conv2D/ReadVariableOp:0": generator.standard_normal((32, 3, 3, 3)) / 5,
        "model/a/BiasAdd/ReadVariableOp:0": generator.standard_normal(32),
        "model/b/Conv2D/ReadVariableOp:0": generator.standard_normal((24, 32, 3, 3)) / 16,
        "model/b/bias": generator.standard_normal((1, 24, 1, 1)),
        "model/head/MatMul/ReadVariableOp:0": generator.standard_normal((24, 4)),
        "model/head/BiasAdd/ReadVariableOp:0": generator.standard_normal(4),
    }
    a, a_bias, b, b_bias, head, head_bias = weights
    axes = [1, 2]
    mean = {"axes": axes} if opset < 18 else {}
    cast = [helper.make_node("Cast", ["images:0"], ["cast"], to=TensorProto.FLOAT)] if kind != TensorProto.FLOAT else []
    nodes = [
        *cast,
        helper.make_node("Transpose", ["cast" if cast else "images:0"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", a, a_bias], ["c"], name="StatefulPartitionedCall/model/a/Conv2D", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", b], ["e"], name="StatefulPartitionedCall/model/b/Conv2D"),
        helper.make_node("Add", ["e", b_bias], ["f"]),
        helper.make_node("Relu", ["f"], ["g"]),
        helper.make_node("Transpose", ["g"], ["h"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["h", *(["axes"] if opset >= 18 else [])], ["i"], keepdims=0, **mean),
        helper.make_node("MatMul", ["i", head], ["j"], name="StatefulPartitionedCall/model/head/MatMul"),
        helper.make_node("Add", ["j", head_bias], ["scores:0"]),
    ]
    initializers = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    initializers += [numpy_helper.from_array(np.asarray(axes), "axes")] if opset >= 18 else []
    graph = helper.make_graph(
        nodes,
        "tf2onnx",
        [helper.make_tensor_value_info("images:0", kind, ["unk__1", size, size, 3])],
        [helper.make_tensor_value_info("scores:0", TensorProto.FLOAT, ["unk__2", 4])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def answers(data: bytes, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """What ONNX Runtime answers, one image at a time."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([np.asarray(session.run(None, {name: inputs[i : i + 1]})[0]) for i in range(len(inputs))])


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
