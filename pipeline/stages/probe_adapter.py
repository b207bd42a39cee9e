"""Adapter: turns a pruned model into a graph for a probe. The graph package and the probe package do not know each other."""

from pipeline.core.batch import arrays_in
from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder
from pipeline.probe.interface import Graph, Reference

__all__ = ["graph_of", "reference_of"]


def graph_of(pruned: PrunedModel) -> Graph:
    """The file of `pruned`, its weight slices and, if it must be exact, the answers that it must give."""
    expected = (lambda: pruned.answers) if pruned.exact else None
    return Graph(lambda: pruned.data, pruned.structure, expected, weight_slices=pruned.weight_slices, tolerance=pruned.tolerance)


def reference_of(builder: PrunedModelBuilder) -> Reference:
    """The dense graph and the example input. Every pruned model is timed against them."""
    dense = builder.make(builder.space.dense())
    return Reference(Graph(lambda: dense.data, dense.structure, weight_slices=dense.weight_slices), arrays_in(builder.example))
