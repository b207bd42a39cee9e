"""Handover: a draft on its way to a probe. The graph package knows no probes, and the probes no drafts."""

from pipeline.graph.drafts import Draft, Drafts
from pipeline.probe.base import Graph, Reference

__all__ = ["graph_of", "reference_of"]


def graph_of(draft: Draft) -> Graph:
    """The draft's file, its recipe, and the answer it must give, where it is to give one exactly."""
    return Graph(lambda: draft.data, draft.structure, (lambda: draft.answer) if draft.exact else None, draft.recipe)


def reference_of(drafts: Drafts) -> Reference:
    """The dense graph and the example, against which every draft is timed."""
    dense = drafts.make(drafts.space.dense())
    return Reference(Graph(lambda: dense.data, dense.structure, None, dense.recipe), drafts.example.numpy())
