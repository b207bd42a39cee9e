"""Exporters: the two ways that torch has of making an ONNX graph of a module, each as a function of the same kind."""

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
"""(module in evaluation mode, example, opset) -> the graph, perhaps of another opset. Raises NotExported."""


class NotExported(Exception):
    """An exporter refused a module; the message says why in a line."""


def captured(module: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    """By torch.export and onnxscript. It reads the module's Python and refuses what depends on the values of its input."""
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
    """By TorchScript, which writes down what the module does with the example. What it warns of, a choice that the values of the
    input decide, is refused: it would be made the same way for every input.
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
"""In the order in which they are tried. Only the first leaves the names by which weights are found and sliced."""


def _origin(problem: BaseException) -> BaseException:
    """The warning that was made an error, where there was one: torch reports it as a defect of its own."""
    if isinstance(problem, TracerWarning) or problem.__cause__ is None:
        return problem
    return _origin(problem.__cause__)


def _reason(problem: BaseException) -> str:
    """What went wrong. The exporter says it under a headline of its own, below advice on how to debug torch."""
    summary = str(problem).partition("## Exception summary")[2]
    return one_line(RuntimeError(re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", summary)) if summary else problem)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
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


@contextlib.contextmanager
def _mute_stderr() -> Iterator[None]:
    """TorchScript prints the graph of an export that failed, verbose or not (`setup_onnx_logging` of torch 2.15 takes a function
    for its answer), from C++, where Python's own redirections do not reach.
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
