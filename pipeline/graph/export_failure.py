"""Export failure: a sentence about the user's network that says why it cannot be exported, and what to do about it.

What torch or ONNX Runtime says is foreign text. It follows the reason in brackets, cleaned and shortened.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pipeline.errors import CompressError, OutOfMemory, TraceError, one_line
from pipeline.foreign_text import clean_text
from pipeline.graph.rounding import LARGEST, lost_to_rounding
from pipeline.system.memory_errors import SIGNS
from pipeline.system.user_files import own_line

__all__ = ["Attempt", "export_failure", "lacks_operator"]

DETAIL = 160
"""Longest text of one exporter, or of ONNX Runtime, in a message."""

Sentence = tuple[str, str]
"""The reason, and what to do."""

ELSEWISE = "write that part of the network in another way"
PYTHON_VALUES = re.compile(r"data-dependent|DataDependent|unbacked|to a Python|_local_scalar_dense|Iterating over a tensor", re.I)
OPERATION = re.compile(r"No ONNX function found for <OpOverload\(op='\w+\.(\w+)'|[Ee]xporting the operator '\w+::(\w+)'")
NO_OPERATOR = re.compile(r"No Op registered for (\w+) with domain_version of (\d+)")
NO_KIND = re.compile(r"implementation for (\w+)\(\d+\)|Type 'tensor\((?:bfloat16|float16|double)\)'.* of operator \((\w+)\)")


@dataclass(frozen=True)
class Attempt:
    """How one exporter failed. `text` is foreign for the kinds "export" and "run", and a reason in our words for the others."""

    exporter: str
    kind: Literal["export", "run", "answer", "operators"]
    text: str
    line: str | None = None
    """The line of the user's code at which the exporter stopped."""


def lacks_operator(attempt: Attempt) -> bool:
    """Whether the graph needs an operator that only a higher opset has."""
    return attempt.kind == "run" and NO_OPERATOR.search(attempt.text) is not None


def export_failure(module: nn.Module, example: tuple[torch.Tensor, ...], attempts: Sequence[Attempt]) -> CompressError:
    """Return the error for `module`, in evaluation mode, which no exporter exported; `attempts` has one entry for each of them.

    The network is run to find out whether the reason lies in itself. OutOfMemory where memory was missing, otherwise TraceError.
    """
    first = attempts[0]
    foreign = [attempt for attempt in attempts if attempt.kind in ("export", "run")]
    details = "; ".join(f"{attempt.exporter}: {clean_text(attempt.text, DETAIL)}" for attempt in foreign)
    said = f" ({details})" if details else ""
    if first in foreign and any(sign in first.text for sign in (*SIGNS, "MemoryError")):
        return OutOfMemory(
            f"there is not enough memory to export the network and to run its graph{said}; use a machine with more memory, or a "
            "smaller network"
        )
    reason, advice = _of_network(module, example, first) or _of_attempt(first)
    return TraceError(f"the network cannot be exported to ONNX: {reason}{said}; {advice}")


def _of_network(module: nn.Module, example: tuple[torch.Tensor, ...], first: Attempt) -> Sentence | None:
    """The reason, if it lies in what the network computes, whatever exports it."""
    try:
        one, other = _outputs(module, example), _outputs(module, example)
    except Exception as problem:  # the user's own code may raise anything
        return _kind_of_weights(module) or _own_error(problem, example)
    if not all(np.isfinite(part).all() for part in one):
        return "its output is not finite (NaN or infinite)", "check its weights and how its inputs are prepared"
    if any(not np.array_equal(*pair) for pair in zip(one, other, strict=True)):
        text = "its output changes from one run to the next, also in evaluation mode"
        return text, "switch off dropout and noise where module.training is False"
    if first.kind == "answer" and (lost := lost_to_rounding(module, example)) > LARGEST / 10:
        text = f"rounding alone changes its output by {100 * lost:.2g} % of the largest one, so its graph cannot be checked"
        return text, "load trained weights, because random or diverged ones do this"
    return _kind_of_weights(module) if first.kind == "run" else None


def _own_error(problem: Exception, example: tuple[torch.Tensor, ...]) -> Sentence:
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in example)
    line = own_line(problem)
    where = f" at {line}" if line else ""
    text = f"its own code fails on an input of {shapes}{where}: {type(problem).__name__}: {one_line(problem, DETAIL)}"
    return text, "let it run on one sample in evaluation mode"


def _kind_of_weights(module: nn.Module) -> Sentence | None:
    kinds = {value.dtype for value in module.parameters() if value.is_floating_point()} - {torch.float32}
    names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    return (f"its weights are {names}, and a graph for devices needs float32", "return it with .float()") if kinds else None


def _of_attempt(attempt: Attempt) -> Sentence:
    """The reason by what the first exporter, or ONNX Runtime, says."""
    where = f" at {attempt.line}" if attempt.line else ""
    if attempt.kind in ("answer", "operators"):
        reason, _, advice = attempt.text.partition("; ")
        return reason, advice or ELSEWISE
    if attempt.kind == "run":
        if found := NO_OPERATOR.search(attempt.text):
            return f"it needs the operator {found[1]}, which ONNX opset {found[2]} does not have", "raise runtime.opset"
        if found := NO_KIND.search(attempt.text):
            return f"ONNX Runtime cannot compute {found[1] or found[2]} with its kind of number", "use float32 in that part"
        return "ONNX Runtime does not run its graph", ELSEWISE
    if PYTHON_VALUES.search(attempt.text):
        text = f"its code makes decisions from values of the input{where}, with if, while, int(), float() or .item()"
        return text, "use tensor operations there, such as torch.where"
    if found := OPERATION.search(attempt.text):
        return f"it uses the operation {found[1] or found[2]}{where}, which has no counterpart in ONNX", ELSEWISE
    return f"torch's exporter does not accept its code{where}", f"{attempt.exporter} must accept it"


def _outputs(module: nn.Module, example: tuple[torch.Tensor, ...]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    with torch.no_grad():
        found = module(*example)
    leaves = (leaf.detach() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor))
    return [(leaf.double() if leaf.is_floating_point() else leaf).clone().numpy() for leaf in leaves]
