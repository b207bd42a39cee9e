"""Difference: where in its graph an ONNX file leaves the path of the network that it was made of."""

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.onnx_outputs import TOLERANCE, open_session

__all__ = ["first_difference"]


class _Recorder(TorchDispatchMode):
    """Keeps what every operation of a torch network computes, by its number of values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: dict[int, list[NDArray[np.float32]]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.values[value.numel()].append(value.detach().float().numpy().ravel().copy())
        return result


def first_difference(module: nn.Module, model: onnx.ModelProto, inputs: Tensor) -> str:
    """The first node of `model` from which on nothing agrees with `module`, as "'node_Conv_3' (Conv)".

    Every node's output is asked for and looked up among all that torch computes on the way; exporters fuse and split, so a node
    counts as right when one that follows from it agrees. `inputs`: one batch, (1, C, H, W).
    """
    with torch.no_grad(), _Recorder() as recorder:
        module(inputs)
    found = _all_outputs(model, inputs.numpy())
    right: dict[str, bool] = {name: _occurs(value, recorder.values[value.size]) for name, value in found.items()}
    for node in reversed(model.graph.node):
        if any(right.get(name, False) for name in node.output):
            for name in node.input:
                right[name] = True
    for node in model.graph.node:
        outputs = [name for name in node.output if name in found]
        if node.op_type != "Constant" and outputs and not any(right[name] for name in outputs):
            return f"'{node.name}' ({node.op_type})"
    return "its end"


def _all_outputs(model: onnx.ModelProto, inputs: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What each node computes, where that is a tensor of float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = {value.name: value for value in onnx.shape_inference.infer_shapes(copy).graph.value_info}
    there = {value.name for value in copy.graph.output}
    for node in model.graph.node:
        for name in node.output:
            kind = kinds.get(name)
            if kind and name not in there and kind.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                copy.graph.output.append(kind)
    session = open_session(copy.SerializeToString(), threads=1, optimized=False)
    names = [value.name for value in copy.graph.output]
    answers = session.run(names, {session.get_inputs()[0].name: inputs})
    return {name: np.asarray(value) for name, value in zip(names, answers, strict=True)}


def _occurs(value: NDArray[np.float32], among: list[NDArray[np.float32]]) -> bool:
    flat = value.ravel()
    scale = max(float(np.abs(flat).max(initial=0.0)), 1e-6)
    return any(float(np.abs(flat - other).max(initial=0.0)) <= TOLERANCE * scale for other in among)
