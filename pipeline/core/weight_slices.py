"""Weight slices: an ONNX file as slices of base weights that the worker has already; kilobytes instead of megabytes."""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BaseWeights", "Cuts", "Tensor", "WeightSlices"]


Cuts = tuple[tuple[int, NDArray[np.int64]], ...]
"""(axis, kept indices) of every cut of one tensor, in order."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of the base weights."""

    name: str
    onnx_type: int
    """Value of TensorProto.DataType."""
    values: NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class BaseWeights:
    """All weights of the dense graph, which is exported once. Every candidate keeps a part of them."""

    tensors: tuple[Tensor, ...]

    def data(self) -> bytes:
        """Return all values one after the other, little-endian, in C order."""
        return b"".join(tensor.values.tobytes() for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `data`, in hexadecimal."""
        return hashlib.sha256(self.data()).hexdigest()

    @cached_property
    def index(self) -> list[list[Any]]:
        """The layout of `data`: [name, ONNX type, numpy type, shape, offset in bytes] of each tensor."""
        entries, offset = [], 0
        for tensor in self.tensors:
            values = tensor.values
            entries.append([tensor.name, tensor.onnx_type, values.dtype.str, list(values.shape), offset])
            offset += values.nbytes
        return entries


@dataclass(frozen=True, eq=False)
class WeightSlices:
    """One ONNX file: a graph, and the slices of the base weights that it uses."""

    base: BaseWeights
    model: bytes
    """The serialised file without its graph."""
    graph: bytes
    """The serialised graph without its weights."""
    cuts: tuple[Cuts | None, ...]
    """The cuts of each tensor of the base; None if the file has no such tensor."""

    @cached_property
    def blob(self) -> bytes:
        """`model` and `graph`, compressed."""
        return zlib.compress(self.model + self.graph, 1)

    @cached_property
    def order(self) -> dict[str, Any]:
        """The rest, as a message: the kept indices of each axis as hexadecimal bit masks. Each mask is stored once."""
        masks: dict[tuple[int, bytes], int] = {}
        cuts: list[list[list[int]] | None] = []
        for tensor, cut in zip(self.base.tensors, self.cuts, strict=True):
            if cut is None:
                cuts.append(None)
                continue
            entry = []
            for axis, stays in cut:
                size = tensor.values.shape[axis]
                bits = np.zeros(size, dtype=bool)
                bits[stays] = True
                entry.append([axis, masks.setdefault((size, np.packbits(bits).tobytes()), len(masks))])
            cuts.append(entry)
        return {
            "base": self.base.digest,
            "model_bytes": len(self.model),
            "masks": [[size, bits.hex()] for size, bits in masks],
            "cuts": cuts,
        }

    @cached_property
    def digest(self) -> str:
        """A digest that names the resulting file."""
        return hashlib.sha256(repr(self.order).encode() + self.model + self.graph).hexdigest()
