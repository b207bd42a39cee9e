"""Exporters: the two ONNX exporters of torch, as functions with the same signature."""

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator

import onnx
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from pipeline.errors import one_line
from pipeline.graph.optimise import optimise

__all__ = ["EXPORTERS", "INPUT", "OUTPUT", "Exporter", "NotExported"]

INPUT = "input"
OUTPUT = "output"

Exporter = Callable[[nn.Module, Tensor, int], onnx.ModelProto]
"""(module in evaluation mode, example, opset) -> the graph, whose opset may be a different one. Raises NotExported."""


class NotExported(Exception):
    """An exporter failed to export a module; the message gives the reason in one line."""


def captured(module: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    """Export with torch.export and onnxscript. This exporter rejects code that depends on the values of the input."""
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
                optimize=False,
            )
            optimise(program.model)  # type: ignore[union-attr]
        return program.model_proto  # type: ignore[union-attr]
    except Exception as problem:
        raise NotExported(_reason(problem)) from None


def traced(module: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    """Export with TorchScript, which records the operations that the module runs on the example. A branch that depends on the
    values of the input is an error here, although TorchScript only warns: the graph would take the same branch for every input.
    """
    try:
        with _silence(), _mute_stderr(), torch.no_grad():
            warnings.simplefilter("error", TracerWarning)
            buffer = io.BytesIO()
            torch.onnx.export(
                module,
                (example,),
                buffer,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=opset,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
        return onnx.load_model_from_string(buffer.getvalue())
    except Exception as problem:
        raise NotExported(_reason(_origin(problem))) from None


EXPORTERS: dict[str, Exporter] = {"torch.onnx.export(..., dynamo=True)": captured, "torch.onnx.export(..., dynamo=False)": traced}
"""Exporters in the order in which they are tried. Only the first keeps the names by which slicing finds weights."""


def _origin(problem: BaseException) -> BaseException:
    """The TracerWarning behind `problem`, if there is one. Torch wraps it in an error that calls it a bug in torch."""
    if isinstance(problem, TracerWarning) or problem.__cause__ is None:
        return problem
    return _origin(problem.__cause__)


def _reason(problem: BaseException) -> str:
    """The cause in one line. The exporter puts it under a heading, below advice on debugging torch."""
    summary = str(problem).partition("## Exception summary")[2]
    return one_line(RuntimeError(re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", summary)) if summary else problem)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's progress output and internal warnings. Real problems are raised as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _mute_stderr() -> Iterator[None]:
    """Redirect file descriptor 2 to os.devnull. When an export fails, TorchScript always prints the graph (`setup_onnx_logging`
    of torch 2.15 tests a function instead of its result), from C++, which Python's redirections do not affect.
    """
    torch._C._jit_set_onnx_log_output_stream("stderr")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
