"""Verify: check on real inputs that the outputs of the final file equal the network's."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.core.batch import Inputs, arrays_in, joined, outputs_of
from pipeline.errors import ShipError, one_line
from pipeline.foreign_text import clean_text
from pipeline.graph.rounding import MOST_LOST, allowed_difference, exact_outputs, loses_only_digits
from pipeline.graph.simplify import Simplified, simplify
from pipeline.graph.structure import load_graph
from pipeline.training.scoring import OnnxModule

__all__ = ["Verified", "verified_file"]

PARITY_INPUTS = 256
RELATIVE, ABSOLUTE = 1e-3, 1e-4
INTEGER_SHARE = 1e-2
LOOKED_AT = 8
"""Number of inputs on which a file that differs is run in double precision."""


@dataclass(frozen=True)
class Verified:
    """An ONNX file, and what was proven about it."""

    data: bytes
    proofs: tuple[str, ...]


def verified_file(module: nn.Module, data: bytes, inputs: Inputs) -> Verified:
    """Simplify `data`, the export of `module`, if that is safe; check it; and compare it with `module` on `inputs`.

    `inputs`: real inputs, (N, C, H, W). Answers must agree within 1e-3 relative and 1e-4 of the largest, or within what the
    network's own rounding explains (`allowed_difference`), or in double precision (`loses_only_digits`). The proof says how many
    decisions (the largest output) differ; only ties can. Raises ShipError, which names the first input that disagrees.
    """
    smaller = simplify(data, arrays_in(inputs[:1]))
    try:
        return Verified(smaller.data, _proofs(module, smaller, inputs))
    except ShipError as problem:
        if smaller.data == data:
            raise
        plain = Simplified(data, f"not simplified: {problem}")
        return Verified(data, _proofs(module, plain, inputs))


def _proofs(module: nn.Module, simplified: Simplified, inputs: Inputs) -> tuple[str, ...]:
    graph = load_graph(simplified.data)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as problem:
        raise ShipError(f"the ONNX file is invalid: {one_line(problem)}; this is a defect of the exporter") from None
    module.eval()
    with torch.no_grad():
        expected = arrays_in(outputs_of(module(inputs)))
    file = OnnxModule(simplified.data)
    found = arrays_in(outputs_of(file(inputs)))
    names = file.output_names if len(file.output_names) > 1 else ("",)
    compared = [_compared(*each, len(inputs)) for each in zip(names, expected, found, strict=True)]
    in_torch = functools.cache(lambda: allowed_difference(module, inputs))
    lost: list[float] = []
    for output in compared:
        wrong, allowed = output.wrong(ABSOLUTE), ABSOLUTE
        if len(wrong):  # a softmax of large numbers, for example, makes their rounding visible
            allowed = in_torch()
            wrong = output.wrong(allowed)
        if not len(wrong):
            continue
        if _is_right_in_double(module, simplified.data, inputs, output, wrong, allowed):
            lost += (output.off[wrong].max(axis=1) / output.scale).tolist()
            continue
        place = f" in the output '{clean_text(output.name, 80)}'" if output.name else ""
        first = f"number {wrong[0]} (by {output.off[wrong[0]].max():.3g}, largest output {output.scale:.3g})"
        raise ShipError(
            f"the outputs of the ONNX file differ from the network's on {len(wrong)} of {len(inputs)} inputs{place}, "
            f"first on {first}; rounding explains {allowed * output.scale:.2g}; no artifact is written"
        )
    floats = [output for output in compared if not output.integers]
    largest = max((float(output.off.max(initial=0.0)) / max(output.scale, 1e-12) for output in floats), default=0.0)
    text = f"ONNX against torch on {len(inputs)} real inputs: largest difference {largest:.1e} of the largest output"
    if lost:
        text += f" (ONNX Runtime loses digits on {len(lost)} of them; in double precision it gives the network's outputs there)"
    if len(compared) > 1:
        return simplified.note, f"{text}, over {len(compared)} outputs"
    # answers that agree can decide differently only if two outputs are nearly equal, as in a poorly trained network
    ties = int((compared[0].expected.argmax(1) != compared[0].found.argmax(1)).sum())
    alike = "all of them" if not ties else f"all but {ties}, whose two largest outputs are equal within that difference"
    return simplified.note, f"{text}, the same decision on {alike}"


def _is_right_in_double(
    module: nn.Module, data: bytes, inputs: Inputs, output: "_Output", wrong: NDArray[np.int64], allowed: float
) -> bool:
    """Whether ONNX Runtime only loses digits on the LOOKED_AT worst of the inputs `wrong`; see `loses_only_digits`."""
    off = output.off[wrong].max(axis=1)
    if not (off <= MOST_LOST * output.scale).all():
        return False
    worst = sorted(wrong[np.argsort(-off)[:LOOKED_AT]].tolist())
    samples = [inputs[number : number + 1] for number in worst]
    exact = exact_outputs(module, joined(samples))
    return exact is not None and loses_only_digits(exact, data, [arrays_in(sample) for sample in samples], allowed)


@dataclass(frozen=True)
class _Output:
    """One output of the network and of the file, as (samples, values)."""

    name: str
    expected: NDArray[Any]
    found: NDArray[Any]
    integers: bool

    @property
    def scale(self) -> float:
        """The largest output of the network."""
        return float(np.abs(self.expected).max(initial=0.0))

    @property
    def off(self) -> NDArray[Any]:
        off: NDArray[Any] = np.abs(self.expected - self.found)
        return off

    def wrong(self, share: float) -> NDArray[np.int64]:
        """The samples with a value that differs by more than RELATIVE, or by this share of the largest output.

        Integers, such as the classes of pixels, are right if at most INTEGER_SHARE of them differ, because rounding may decide.
        """
        if self.integers and (self.off > 0).mean() <= INTEGER_SHARE:
            return np.zeros(0, dtype=np.int64)
        allowed = RELATIVE * np.abs(self.expected) + share * self.scale
        return np.flatnonzero((self.off > allowed).any(axis=1) | ~np.isfinite(self.found).all(axis=1))


def _compared(name: str, expected: NDArray[Any], found: NDArray[Any], count: int) -> _Output:
    if expected.shape != found.shape:
        raise ShipError(
            f"output '{clean_text(name or 'output', 80)}': the ONNX file gives {found.shape}, and the network {expected.shape}; "
            "the first axis of each output must be the sample"
        )
    integers = expected.dtype.kind in "biu"
    wide = np.float64 if integers else expected.dtype  # booleans and integers cannot be subtracted safely
    return _Output(name, expected.reshape(count, -1).astype(wide), found.reshape(count, -1).astype(wide), integers)
