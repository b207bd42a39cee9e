"""Fold: make the deployed graph from the trainable one. Dropout goes, and BatchNormalization goes into the layer before it.

The operators and shapes of the result depend only on those of the graph, never on values. Each channel is computed from its own
values alone, so that folding a slice and slicing the folded graph give the same file.
"""

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass

import onnx

from pipeline.graph.edit import copy_of, remove_bypasses, remove_unused
from pipeline.graph.fold_batchnorm import fold_batchnorms
from pipeline.graph.metadata import constants_of, stamp

__all__ = ["Folded", "fold"]


@dataclass(frozen=True)
class Folded:
    """A deployed graph, and where its new initializers come from."""

    model: onnx.ModelProto
    follows: Mapping[str, str]
    """New bias -> the weight whose output axis its axis 0 follows. That of a grouped ConvTranspose is (group, axis 1)."""
    copies: Mapping[str, str]
    """New initializer -> the one of the trainable graph that it is a scaled copy of, because other layers use that one too."""


def fold(model: onnx.ModelProto) -> Folded:
    """Return the deployed graph of `model`, a trainable graph, whole or sliced.

    Dropout and Identity nodes are removed. A BatchNormalization is folded into the Conv, ConvTranspose, Gemm or MatMul whose
    output only it uses; without such a layer it stays. All other nodes and initializers keep their names. Values are computed in
    float64. A weight that layers with different BatchNormalization share is copied.
    """
    model = copy_of(model)
    graph = model.graph
    remove_bypasses(graph)
    sources = fold_batchnorms(model)
    remove_unused(graph)
    left = {tensor.name for tensor in graph.initializer}
    constants = constants_of(model)
    if constants is not None:
        stamp(model, {"constants": json.dumps(sorted(constants & left))})
    return Folded(model, _within(sources.follows, left), _within(sources.copies, left))


def _within(names: Mapping[str, str], left: Container[str]) -> dict[str, str]:
    return {new: old for new, old in names.items() if new in left}
