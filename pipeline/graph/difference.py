"""Difference: find the first node of an ONNX graph whose output differs from the torch network that it was exported from."""

from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.onnx_outputs import TOLERANCE, open_session
from pipeline.graph.edit import copy_of
from pipeline.graph.exporters import Examples, as_tuple
from pipeline.graph.module_names import places_of

__all__ = ["first_difference"]


class _Recorder(TorchDispatchMode):
    """Records the result of every operation of a torch network, grouped by number of values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values: dict[int, list[NDArray[np.float32]]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.values[value.numel()].append(value.detach().float().numpy().ravel().copy())
        return result


def first_difference(module: nn.Module, model: onnx.ModelProto, inputs: Examples) -> str:
    """Return the first node of `model` from which on no output agrees with `module`, for example "Conv in 'features.3'".

    Every node's output is looked up among all results that torch computes. Exporters fuse and split operations, so a node counts
    as right when a later node that depends on it agrees. `inputs` is one sample, a batch of one.
    """
    arguments = as_tuple(inputs)
    with torch.no_grad(), _Recorder() as recorder:
        module(*arguments)
    found = _all_outputs(model, [tensor.numpy() for tensor in arguments])
    right: dict[str, bool] = {name: _occurs(value, recorder.values[value.size]) for name, value in found.items()}
    for node in reversed(model.graph.node):
        if any(right.get(name, False) for name in node.output):
            for name in node.input:
                right[name] = True
    for node in model.graph.node:
        outputs = [name for name in node.output if name in found]
        if node.op_type != "Constant" and outputs and not any(right[name] for name in outputs):
            return places_of(model)[node.name]
    return "its end"


def _all_outputs(model: onnx.ModelProto, inputs: list[NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The output of every node that computes a float32 tensor."""
    copy = copy_of(model)
    kinds = {value.name: value for value in onnx.shape_inference.infer_shapes(copy).graph.value_info}
    there = {value.name for value in copy.graph.output}
    for node in model.graph.node:
        for name in node.output:
            kind = kinds.get(name)
            if kind and name not in there and kind.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                copy.graph.output.append(kind)
    session = open_session(copy.SerializeToString(), threads=1, optimized=False)
    names = [value.name for value in copy.graph.output]
    feeds = {value.name: array for value, array in zip(session.get_inputs(), inputs, strict=True)}
    answers = session.run(names, feeds)
    return {name: np.asarray(value) for name, value in zip(names, answers, strict=True)}


def _occurs(value: NDArray[np.float32], among: list[NDArray[np.float32]]) -> bool:
    flat = value.ravel()
    scale = max(float(np.abs(flat).max(initial=0.0)), 1e-6)
    return any(float(np.abs(flat - other).max(initial=0.0)) <= TOLERANCE * scale for other in among)
