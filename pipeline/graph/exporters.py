"""Exporters: the two ONNX exporters of torch, as functions with the same signature. Each makes two kinds of graph.

The deployed graph has BatchNormalization folded and no Dropout. The trainable graph has both, and each of its weights is an
initializer.
"""

import contextlib
import io
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx_ir
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from pipeline.core.batch import Inputs, tensors_of
from pipeline.core.network_form import names_of
from pipeline.errors import one_line
from pipeline.graph.attention import attention_of_four_axes
from pipeline.graph.dropout import DROPOUT_TRANSLATION, keep_dropout
from pipeline.graph.edit import free_name, names_in, rename_uses
from pipeline.graph.module_names import note_scopes
from pipeline.graph.optimise import optimise, optimise_trainable
from pipeline.system.user_files import own_line

__all__ = ["EXPORTERS", "INPUT", "OUTPUT", "TRAINABLE_EXPORTERS", "Examples", "Exporter", "NotExported", "as_tuple"]

INPUT = "input"
OUTPUT = "output"

Examples = Inputs | tuple[Tensor, ...]
"""The example inputs of a network, in order."""

Exporter = Callable[[nn.Module, Examples, int], onnx.ModelProto]
"""(module in evaluation mode, example, opset) -> the graph, whose opset may be a different one. Raises NotExported."""


class NotExported(Exception):
    """An exporter failed to export a module; the message gives the reason in one line, and `line` that of the user's code."""

    def __init__(self, problem: BaseException) -> None:
        super().__init__(_reason(problem))
        self.line = _line(problem)


def as_tuple(inputs: Examples) -> tuple[Tensor, ...]:
    """Return `inputs` as the arguments of the module."""
    return inputs if isinstance(inputs, tuple) else tensors_of(inputs)


def captured(module: nn.Module, example: Examples, opset: int) -> onnx.ModelProto:
    """Export with torch.export and onnxscript. This exporter rejects code that depends on the values of the input."""
    try:
        program = _capture(module, example, opset)
        optimise(program.model)
        return _named(program.model_proto, module)
    except Exception as problem:
        raise NotExported(problem) from None


def captured_trainable(module: nn.Module, example: Examples, opset: int) -> onnx.ModelProto:
    """Export like `captured`, as a trainable graph."""
    try:
        with keep_dropout():
            program = _capture(module, example, opset, custom_translation_table=DROPOUT_TRANSLATION)
        optimise_trainable(program.model, _parameter_names(module))
        return _named(program.model_proto, module)
    except Exception as problem:
        raise NotExported(problem) from None


def traced(module: nn.Module, example: Examples, opset: int) -> onnx.ModelProto:
    """Export with TorchScript, which records the operations that the module runs on the example. A branch that depends on the
    values of the input is an error here, although TorchScript only warns: the graph would take the same branch for every input.
    """
    try:
        model = _trace(module, example, opset)
        note_scopes(model, dict(module.named_modules()))
        return _named(model, module)
    except Exception as problem:
        raise NotExported(_origin(problem)) from None


def traced_trainable(module: nn.Module, example: Examples, opset: int) -> onnx.ModelProto:
    """Export like `traced`, as a trainable graph."""
    try:
        with keep_dropout():
            options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
            model = _trace(module, example, opset, **options)
        _separate_equal_weights(model, module)
        note_scopes(model, dict(module.named_modules()))
        graph = onnx_ir.from_proto(model)
        optimise_trainable(graph, _parameter_names(module))
        return _named(onnx_ir.to_proto(graph), module)
    except Exception as problem:
        raise NotExported(_origin(problem)) from None


EXPORTERS: dict[str, Exporter] = {"torch.onnx.export(..., dynamo=True)": captured, "torch.onnx.export(..., dynamo=False)": traced}
"""Exporters in the order in which they are tried."""
TRAINABLE_EXPORTERS: dict[str, Exporter] = dict(zip(EXPORTERS, (captured_trainable, traced_trainable), strict=True))
"""The same exporters, for trainable graphs."""


def _capture(module: nn.Module, example: Examples, opset: int, **options: Any) -> Any:
    with _silence(), attention_of_four_axes(), torch.no_grad():
        return torch.onnx.export(
            module,
            as_tuple(example),
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
            optimize=False,
            **options,
        )


def _trace(module: nn.Module, example: Examples, opset: int, **options: Any) -> onnx.ModelProto:
    with _silence(), _mute_stderr(), attention_of_four_axes(), torch.no_grad():
        warnings.simplefilter("error", TracerWarning)
        buffer = io.BytesIO()
        torch.onnx.export(
            module,
            as_tuple(example),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=opset,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            verbose=False,
            **options,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def _named(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """Name the inputs and outputs as the network does. Others are called input, input_1, ... and output, output_1, ..."""
    graph = model.graph
    _separate_outputs(graph)
    inputs, outputs = names_of(module)
    weights = {tensor.name for tensor in graph.initializer}
    own = [name for names in (inputs, outputs) for name in names]
    wanted: dict[str, str] = {}
    for values, names, usual in ((graph.input, inputs, INPUT), (graph.output, outputs, OUTPUT)):
        for number, value in enumerate(values):
            name = names[number] if number < len(names) else f"{usual}_{number}" if number else usual
            taken = weights | set(wanted.values()) | ({*own} if number >= len(names) else set())
            wanted[value.name] = free_name(name, taken)
    wanted = {old: new for old, new in wanted.items() if old != new}
    if wanted:
        taken = names_in(graph)
        wanted |= {name: free_name(f"{name}_value", taken) for name in set(wanted.values()) & taken - wanted.keys()}
        rename_uses(graph, wanted)
        for node in graph.node:
            node.output[:] = [wanted.get(name, name) for name in node.output]
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            value.name = wanted.get(value.name, value.name)
    return model


def _separate_outputs(graph: onnx.GraphProto) -> None:
    """Give each output a value of its own, in place. A network may return one tensor twice, or one of its inputs."""
    known = {value.name for value in graph.input}
    for value in graph.output:
        if value.name in known:
            name = free_name(f"{value.name}_copy", names_in(graph))
            graph.node.add().CopyFrom(helper.make_node("Identity", [value.name], [name], name=name))
            value.name = name
        known.add(value.name)


def _separate_equal_weights(model: onnx.ModelProto, module: nn.Module) -> None:
    """Give each tensor of `module` an initializer of its own again. TorchScript stores equal ones once, and an Identity names the
    others, so that the graph would depend on the values of the weights. Tensors that share memory stay one.
    """
    tensors = dict(module.state_dict(keep_vars=True))
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Identity" and node.input[0] in weights:
            mine, other = tensors.get(node.output[0]), tensors.get(node.input[0])
            if mine is not None and other is not None and mine.data_ptr() != other.data_ptr():
                graph.initializer.append(numpy_helper.from_array(mine.detach().numpy(), node.output[0]))
                graph.node.remove(node)


def _parameter_names(module: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in module.named_parameters(remove_duplicate=False))


def _origin(problem: BaseException) -> BaseException:
    """The TracerWarning behind `problem`, if there is one. Torch wraps it in an error that calls it a bug in torch."""
    if isinstance(problem, TracerWarning) or problem.__cause__ is None:
        return problem
    return _origin(problem.__cause__)


def _reason(problem: BaseException) -> str:
    """The cause in one line. The exporter puts it under a heading, below advice on debugging torch."""
    summary = str(problem).partition("## Exception summary")[2]
    return one_line(RuntimeError(re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", summary)) if summary else problem)


def _line(problem: BaseException | None) -> str | None:
    """The line of the user's code at which `problem`, or the error behind it, was raised; None if there is none."""
    while problem is not None:
        line = own_line(problem)
        if line is not None:
            return line
        problem = problem.__cause__ or problem.__context__
    return None


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
