"""Handover: a draft on its way to a probe. The graph package knows no probes, and the probes no drafts."""

from pipeline.graph.pruned_model import PrunedModel, PrunedModelBuilder
from pipeline.probe.interface import Graph, Reference

__all__ = ["graph_of", "reference_of"]


def graph_of(pruned: PrunedModel) -> Graph:
    """The draft's file, its recipe, and the answer it must give, where it is to give one exactly."""
    return Graph(lambda: pruned.data, pruned.structure, (lambda: pruned.answer) if pruned.exact else None, pruned.weight_slices)


def reference_of(builder: PrunedModelBuilder) -> Reference:
    """The dense graph and the example, against which every draft is timed."""
    dense = builder.make(builder.space.dense())
    return Reference(Graph(lambda: dense.data, dense.structure, None, dense.weight_slices), builder.example.numpy())
