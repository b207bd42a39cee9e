"""Export: convert a torch module to a single ONNX file, with the first exporter whose graph gives the right output."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.core.onnx_outputs import all_outputs, largest_difference
from pipeline.errors import TraceError, one_line
from pipeline.graph.difference import first_difference
from pipeline.graph.export_failure import Attempt, export_failure, lacks_operator
from pipeline.graph.exporters import EXPORTERS, INPUT, OUTPUT, TRAINABLE_EXPORTERS, Examples, Exporter, NotExported, as_tuple
from pipeline.graph.metadata import METADATA, SCOPES, exporter_of, keep_only_own, opset_of, stamp, stripped
from pipeline.graph.rounding import agrees

__all__ = [
    "INPUT",
    "METADATA",
    "OUTPUT",
    "SCOPES",
    "export",
    "export_trainable",
    "exporter_of",
    "opset_of",
    "stamp",
    "stripped",
]

LIMIT_BYTES = 2**31 - 2**20
"""Largest size of all weights together. A protobuf message, and so an ONNX file, holds less than 2 GiB."""


def export(
    module: nn.Module,
    example: Examples,
    opset: int,
    ir_version: int,
    highest_opset: int | None = None,
    exporters: Mapping[str, Exporter] = EXPORTERS,
) -> onnx.ModelProto:
    """Export `module`, in evaluation mode, to an ONNX graph for inputs of exactly the shapes of `example`, (N, C, H, W).

    The exporters are tried in turn until a graph gives the module's output; `exporter_of` returns which one made it. If the
    network needs a higher opset, up to `highest_opset` (default: `opset`) is accepted. Only `SCOPES` is kept of the exporter's
    metadata, because the rest holds local paths. When every exporter fails, raises what `export_failure` returns.
    """
    return _first_right(module, example, (opset, highest_opset or opset), ir_version, exporters)


def export_trainable(
    module: nn.Module, example: Examples, opset: int, ir_version: int, highest_opset: int | None = None
) -> onnx.ModelProto:
    """Export `module`, in evaluation mode, to a trainable graph: like `export`, but nothing is folded into the weights.

    BatchNormalization and Dropout nodes stay, and every weight is an initializer: unchanged tensors under their names in the
    torch state dict, computed ones (weight norm, a transposed weight) under names derived from their layer's.
    `constants_of` returns which float initializers are not learnable. Layers of dropout that are not in torch.nn.functional,
    and dropout inside attention, are not in the graph.

    `example` is one input, or several as a `Batch` or a tuple. Inputs that the network takes by name, and outputs that it returns
    in a dict, keep their names. Others are called input, input_1, ..., output, output_1, ...

    Raises TraceError or OutOfMemory like `export`.
    """
    return _first_right(module, example, (opset, highest_opset or opset), ir_version, TRAINABLE_EXPORTERS)


def _first_right(
    module: nn.Module, example: Examples, opsets: tuple[int, int], ir_version: int, exporters: Mapping[str, Exporter]
) -> onnx.ModelProto:
    """The graph of the first exporter whose graph gives the module's outputs. `opsets` are the wanted one and the highest."""
    _refuse_giants(module)
    training = module.training
    module.eval()
    attempts: list[Attempt] = []
    try:
        for name, exporter in exporters.items():
            for opset in dict.fromkeys(opsets):
                attempt = _attempt(module, example, opset, name, exporter, opsets[1])
                if isinstance(attempt, onnx.ModelProto):
                    keep_only_own(attempt)
                    stamp(attempt, {"exporter": name})
                    attempt.ir_version = ir_version if ir_version >= 10 else 10
                    return attempt
                if not lacks_operator(attempt):
                    break
            attempts.append(attempt)
        raise export_failure(module, as_tuple(example), attempts)
    finally:
        module.train(training)


def _attempt(
    module: nn.Module, example: Examples, opset: int, name: str, exporter: Exporter, highest_opset: int
) -> onnx.ModelProto | Attempt:
    """The graph of one exporter with this opset or a higher one, or why it is none."""
    try:
        model = exporter(module, example, opset)
    except NotExported as problem:
        return Attempt(name, "export", str(problem), problem.line)
    if complaint := _wrong_operators(model, opset, highest_opset):
        return Attempt(name, "operators", complaint)
    return _wrong_answers(module, model, as_tuple(example), name) or model


def _refuse_giants(module: nn.Module) -> None:
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    if size > LIMIT_BYTES:
        raise TraceError(
            f"the network's weights take {size / 2**30:.1f} GiB, and one ONNX file holds less than 2; use a smaller one"
        )


def _wrong_operators(model: onnx.ModelProto, opset: int, highest_opset: int) -> str | None:
    """Why the device may not support the operators of `model`, or None when it supports them."""
    found = opset_of(model)
    if not opset <= found <= highest_opset:
        return f"it needs ONNX opset {found}, and the device reads, or the profile asks for, {highest_opset}; raise runtime.opset"
    others = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    return f"it needs operators of {', '.join(others)}, which not every onnxruntime has" if others else None


def _wrong_answers(module: nn.Module, model: onnx.ModelProto, example: tuple[Tensor, ...], exporter: str) -> Attempt | None:
    """How the outputs of graph and module differ for the example and its negative, or None when they agree."""
    data = model.SerializeToString()
    negative = tuple(-tensor if tensor.is_floating_point() else tensor for tensor in example)
    compared = False
    for inputs in (example, negative):
        expected = _answers(module, inputs)
        if not all(np.isfinite(each).all() for each in expected):
            continue
        compared = True
        try:
            found = all_outputs(data, [tensor.numpy() for tensor in inputs])
        except Exception as problem:
            return Attempt(exporter, "run", one_line(problem, 400))
        if len(found) != len(expected):
            return Attempt(exporter, "answer", f"its graph has {len(found)} outputs, and it has {len(expected)}")
        if not agrees(expected, found, module, inputs, data):
            difference, where = largest_difference(expected, found), first_difference(module, model, inputs)
            text = f"the output of its graph is off by {100 * difference:.3g} % of the largest one, from {where} on"
            return Attempt(exporter, "answer", text)
    return None if compared else Attempt(exporter, "answer", "its output is not finite")


def _answers(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[NDArray[Any]]:
    """The tensors that the module returns, in any nesting, in the order in which the exporters list them."""
    with torch.no_grad():
        outputs = module(*inputs)
    return [leaf.numpy() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
