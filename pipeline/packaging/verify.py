"""Verify: check on real inputs that the outputs of the final file equal the network's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.errors import ShipError, one_line
from pipeline.foreign_text import clean_text
from pipeline.graph.rounding import allowed_difference
from pipeline.graph.simplify import Simplified, simplify
from pipeline.graph.structure import load_graph
from pipeline.training.scoring import OnnxModule

__all__ = ["Verified", "verified_file"]

PARITY_INPUTS = 256
RELATIVE, ABSOLUTE = 1e-3, 1e-4
INTEGER_SHARE = 1e-2


@dataclass(frozen=True)
class Verified:
    """An ONNX file, and what was proven about it."""

    data: bytes
    proofs: tuple[str, ...]


def verified_file(module: nn.Module, data: bytes, inputs: Inputs) -> Verified:
    """Simplify `data`, the export of `module`, if that is safe; check it; and compare it with `module` on `inputs`.

    `inputs`: real inputs, (N, C, H, W). Answers must agree within 1e-3 relative and 1e-4 of the largest, or within what the
    network's own rounding explains (`allowed_difference`). The proof says how many decisions (the largest output) differ; only
    ties can. Raises ShipError, which names the first input that disagrees.
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
    allowed: float | None = None
    for output in compared:
        wrong = output.wrong(ABSOLUTE)
        if len(wrong):  # a softmax of large numbers, for example, makes their rounding visible
            allowed = allowed_difference(module, inputs) if allowed is None else allowed
            wrong = output.wrong(allowed)
        if len(wrong):
            place = f" in the output '{clean_text(output.name, 80)}'" if output.name else ""
            first = f"number {wrong[0]} (by {output.off[wrong[0]].max():.3g}, largest output {output.scale:.3g})"
            raise ShipError(
                f"the outputs of the ONNX file differ from the network's on {len(wrong)} of {len(inputs)} inputs{place}, "
                f"first on {first}; no artifact is written"
            )
    floats = [output for output in compared if not output.integers]
    largest = max((float(output.off.max(initial=0.0)) / max(output.scale, 1e-12) for output in floats), default=0.0)
    text = f"ONNX against torch on {len(inputs)} real inputs: largest difference {largest:.1e} of the largest output"
    if len(compared) > 1:
        return simplified.note, f"{text}, over {len(compared)} outputs"
    # answers that agree can decide differently only if two outputs are nearly equal, as in a poorly trained network
    ties = int((compared[0].expected.argmax(1) != compared[0].found.argmax(1)).sum())
    alike = "all of them" if not ties else f"all but {ties}, whose two largest outputs are equal within that difference"
    return simplified.note, f"{text}, the same decision on {alike}"


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
