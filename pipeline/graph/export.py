"""Export: torch module -> ONNX graph, one file, with the names that slicing needs; by torch's exporter, built on onnxscript."""

import contextlib
import io
import logging
import re
import warnings

import onnx
import torch
from torch import Tensor, nn

from pipeline.errors import TraceError, one_line

__all__ = ["INPUT", "OUTPUT", "SCOPES", "export", "stripped"]

INPUT = "input"
OUTPUT = "output"
SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata in which the exporter tells the module a node came from."""


def export(module: nn.Module, example: Tensor, opset: int, ir_version: int) -> onnx.ModelProto:
    """`module` in evaluation mode as an ONNX graph for inputs of exactly the shape of `example`, (N, C, H, W).

    Of the exporter's notes only `SCOPES` are kept; the rest holds paths of this machine. Raises TraceError when the
    exporter fails, or does not reach the opset.
    """
    training = module.training
    module.eval()
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        model: onnx.ModelProto = program.model_proto  # type: ignore[union-attr]
    except Exception as problem:
        raise TraceError(
            f"the network cannot be exported to ONNX: {_reason(problem)}; torch.onnx.export(..., dynamo=True) must accept it"
        ) from None
    finally:
        module.train(training)
    found = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if found != opset:
        raise TraceError(f"the network needs ONNX opset {found} and the profile asks for {opset}; raise runtime.opset")
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        raise TraceError(
            f"the network takes {len(model.graph.input)} inputs and gives {len(model.graph.output)} outputs; "
            "wrap it so that one image batch goes in and one tensor comes out"
        )
    _keep_only_scopes(model)
    model.ir_version = ir_version if ir_version >= 10 else 10
    return model


def stripped(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """A copy as it is measured and shipped: no notes on nodes, no stale shapes, the IR version the device reads."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        del node.metadata_props[:]
    del copy.graph.value_info[:]
    copy.ir_version = ir_version
    return copy


def _reason(problem: Exception) -> str:
    """What went wrong. The exporter says it under a headline of its own, below advice on how to debug torch."""
    summary = str(problem).partition("## Exception summary")[2]
    return one_line(RuntimeError(re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", summary)) if summary else problem)


def _keep_only_scopes(model: onnx.ModelProto) -> None:
    graph = model.graph
    for node in graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.doc_string = ""
        for value in scopes:
            node.metadata_props.add(key=SCOPES, value=value)
    for holder in (model, graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del model.functions[:]


@contextlib.contextmanager
def _silence():  # type: ignore[no-untyped-def]
    """The exporter prints progress and warns about its own insides; what matters comes as an exception."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
