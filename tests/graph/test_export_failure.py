"""Export failures: the reason is a sentence about the user's network, and what a library says comes after it, cleaned and short."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import CompressError, OutOfMemory, TraceError
from pipeline.graph.export_failure import Attempt, export_failure

X = (torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)),)
FIRST, OTHER = "torch.onnx.export(..., dynamo=True)", "torch.onnx.export(..., dynamo=False)"


def failed(module: nn.Module, *attempts: Attempt) -> CompressError:
    return export_failure(module.eval(), X, attempts)


FOREIGN = {
    "a branch": (
        Attempt(
            FIRST, "export", "GuardOnDataDependentSymNode: Could not guard on data-dependent expression Eq(u0, 1)", "nets.py:7"
        ),
        "its code makes decisions from values of the input at nets.py:7, with if, while, int(), float() or .item(); use tensor",
    ),
    "an operation of torch": (
        Attempt(
            FIRST, "export", "DispatchError: No ONNX function found for <OpOverload(op='aten.linalg_inv_ex', overload='x')>."
        ),
        "it uses the operation linalg_inv_ex, which has no counterpart in ONNX; write that part",
    ),
    "another operation of torch": (
        Attempt(OTHER, "export", "Exporting the operator 'aten::linalg_inv' to ONNX opset version 18 is not supported"),
        "it uses the operation linalg_inv, which has no counterpart in ONNX; write that part",
    ),
    "an operator of a later opset": (
        Attempt(FIRST, "run", "[ONNXRuntimeError] : 10 : Error No Op registered for DeformConv with domain_version of 18"),
        "it needs the operator DeformConv, which ONNX opset 18 does not have; raise runtime.opset",
    ),
    "a kind of number": (
        Attempt(FIRST, "run", "[ONNXRuntimeError] : 9 : Could not find an implementation for Conv(11) node with name 'c'"),
        "ONNX Runtime cannot compute Conv with its kind of number; use float32 in that part",
    ),
    "another kind of number": (
        Attempt(
            FIRST, "run", "Type Error: Type 'tensor(bfloat16)' of input parameter (c) of operator (Conv) in node (n) is invalid."
        ),
        "ONNX Runtime cannot compute Conv with its kind of number; use float32 in that part",
    ),
    "an unknown error of the exporter": (
        Attempt(FIRST, "export", "TypeError: boom", "nets.py:7"),
        f"torch's exporter does not accept its code at nets.py:7; {FIRST} must accept it",
    ),
    "an unknown error of the runtime": (
        Attempt(FIRST, "run", "[ONNXRuntimeError] : 1 : FAIL : boom"),
        "ONNX Runtime does not run its graph; write that part of the network in another way",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_a_library_says_becomes_a_sentence_and_follows_it_in_brackets(case: str) -> None:
    attempt, sentence = FOREIGN[case]
    problem = failed(nn.ReLU(), attempt)

    assert isinstance(problem, TraceError)
    reason, _, advice = sentence.partition("; ")
    assert str(problem).startswith(f"the network cannot be exported to ONNX: {reason} (")
    assert f"); {advice}" in str(problem)
    assert f" ({attempt.exporter}: {attempt.text[:40]}" in str(problem)


def test_foreign_text_is_cleaned_and_shortened_and_each_exporter_is_named() -> None:
    text = str(failed(nn.ReLU(), Attempt(FIRST, "export", "\x1b[31m" + 2000 * "x"), Attempt(OTHER, "run", "second")))

    assert "\x1b" not in text
    assert len(text) < 500
    assert f"; {OTHER}: second); " in text


@pytest.mark.parametrize("text", ["[ONNXRuntimeError] : 1 : FAIL : Exception during loading: std::bad_alloc", "MemoryError"])
def test_missing_memory_is_no_fault_of_the_network(text: str) -> None:
    """the second exporter has another complaint"""
    problem = failed(nn.ReLU(), Attempt(FIRST, "run", text), Attempt(OTHER, "export", "Converting a tensor to a Python number"))

    assert isinstance(problem, OutOfMemory)
    assert str(problem).startswith("there is not enough memory to export the network")


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("camera\nnot ready")


class Infinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 0


class Chaotic(nn.Module):
    """Each of 12 convolutions with a sine of large numbers makes rounding larger."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(60 * layer(x))
        return x


ANSWER = Attempt(FIRST, "answer", "the output of its graph is off by 3 % of the largest one, from Sin in 'a' on")
OWN = {
    "noise": (
        Noisy(),
        ANSWER,
        "its output changes from one run to the next, also in evaluation mode; switch off dropout and noise",
    ),
    "an error": (
        Broken(),
        Attempt(FIRST, "export", "ValueError: camera"),
        "its own code fails on an input of 1x3x4x4 at test_export_failure.py:",
    ),
    "infinite outputs": (Infinite(), ANSWER, "its output is not finite (NaN or infinite); check its weights"),
    "rounding": (Chaotic(), ANSWER, "rounding alone changes its output by "),
    "none of these": (
        nn.ReLU(),
        ANSWER,
        "the output of its graph is off by 3 % of the largest one, from Sin in 'a' on; write that",
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_a_reason_that_lies_in_the_network_itself_is_found_by_running_it(case: str) -> None:
    module, attempt, sentence = OWN[case]

    reason, _, advice = sentence.partition("; ")
    assert str(failed(module, attempt)).startswith(f"the network cannot be exported to ONNX: {reason}")
    assert f"; {advice}" in str(failed(module, attempt))


def test_weights_that_are_not_float32_are_named() -> None:
    class Double(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.double()).float()

    problem = failed(Double(), Attempt(FIRST, "run", "Could not find an implementation for Conv(11)"))

    assert "its weights are float64, and a graph for devices needs float32 (" in str(problem)
    assert str(problem).endswith("; return it with .float()")


def test_a_network_in_half_precision_is_told_from_one_whose_code_fails() -> None:
    problem = failed(nn.Conv2d(3, 3, 1).half(), Attempt(FIRST, "export", "RuntimeError: Input type (float) and bias type"))

    assert "its weights are float16, and a graph for devices needs float32 (" in str(problem)
