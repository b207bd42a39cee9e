"""Verify: check on real inputs that the outputs of the final file equal the network's."""

from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.errors import ShipError, one_line
from pipeline.graph.rounding import allowed_difference
from pipeline.graph.simplify import Simplified, simplify
from pipeline.graph.structure import load_graph
from pipeline.training.scoring import OnnxModule

__all__ = ["Verified", "verified_file"]

PARITY_INPUTS = 256
RELATIVE, ABSOLUTE = 1e-3, 1e-4


@dataclass(frozen=True)
class Verified:
    """An ONNX file, and what was proven about it."""

    data: bytes
    proofs: tuple[str, ...]


def verified_file(module: nn.Module, data: bytes, inputs: Tensor) -> Verified:
    """Simplify `data`, the export of `module`, if that is safe; check it; and compare it with `module` on `inputs`.

    `inputs`: real inputs, (N, C, H, W). Answers must agree within 1e-3 relative and 1e-4 of the largest, or within what the
    network's own rounding explains (`allowed_difference`). The proof says how many decisions (the largest output) differ; only
    ties can. Raises ShipError, which names the first input that disagrees.
    """
    smaller = simplify(data, inputs[:1].numpy())
    try:
        return Verified(smaller.data, _proofs(module, smaller, inputs))
    except ShipError as problem:
        if smaller.data == data:
            raise
        plain = Simplified(data, f"not simplified: {problem}")
        return Verified(data, _proofs(module, plain, inputs))


def _proofs(module: nn.Module, simplified: Simplified, inputs: Tensor) -> tuple[str, ...]:
    graph = load_graph(simplified.data)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as problem:
        raise ShipError(f"the ONNX file is invalid: {one_line(problem)}; this is a defect of the exporter") from None
    module.eval()
    with torch.no_grad():
        expected = module(inputs).numpy()
    found = OnnxModule(simplified.data)(inputs).numpy()
    scale = float(np.abs(expected).max())
    off = np.abs(expected - found).reshape(len(inputs), -1)

    def wrong_by(share: float) -> NDArray[np.int64]:
        allowed = RELATIVE * np.abs(expected).reshape(len(inputs), -1) + share * scale
        return np.flatnonzero((off > allowed).any(axis=1) | ~np.isfinite(found.reshape(len(inputs), -1)).all(axis=1))

    wrong = wrong_by(ABSOLUTE)
    if len(wrong):  # a softmax of large numbers, for example, makes their rounding visible
        wrong = wrong_by(allowed_difference(module, (inputs,)))
    if len(wrong):
        raise ShipError(
            f"the outputs of the ONNX file differ from the network's on {len(wrong)} of {len(inputs)} inputs, first on number "
            f"{wrong[0]} (by {off[wrong[0]].max():.3g}, largest output {scale:.3g}); no artifact is written"
        )
    # answers that agree can decide differently only if two outputs are nearly equal, as in a poorly trained network
    ties = int((expected.reshape(len(inputs), -1).argmax(1) != found.reshape(len(inputs), -1).argmax(1)).sum())
    alike = "all of them" if not ties else f"all but {ties}, whose two largest outputs are equal within that difference"
    return (
        simplified.note,
        f"ONNX against torch on {len(inputs)} real inputs: largest difference {off.max() / max(scale, 1e-12):.1e} of the largest "
        f"output, the same decision on {alike}",
    )
