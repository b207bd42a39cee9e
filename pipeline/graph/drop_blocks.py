"""Drop blocks: take blocks out of a graph. What reads the result of a block then reads its entry."""

from collections.abc import Iterable

import onnx

from pipeline.core.plan import Block
from pipeline.graph.edit import keep_only, names_in, rename_uses, subgraphs

__all__ = ["drop_blocks"]


def drop_blocks(graph: onnx.GraphProto, blocks: Iterable[Block]) -> None:
    """Take `blocks` out of `graph`, in place, with all nodes that only they need. Initializers stay.

    The nodes are in the order in which they run, and have names of their own. No block ends at an output of the graph.
    """
    nodes = {node.name: node for node in graph.node}
    sources = {node.output[0]: node.input[block.entry] for block in blocks if (node := nodes[block.node])}
    rename_uses(graph, {result: _first(result, sources) for result in sources})
    _keep_needed(graph)


def _first(result: str, sources: dict[str, str]) -> str:
    """The entry of the first of several dropped blocks in a row."""
    while result in sources:
        result = sources[result]
    return result


def _keep_needed(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output depends on."""
    needed = {value.name for value in graph.output}
    kept = set()
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.add(node.name)
            needed.update(node.input)
            for inner in subgraphs(node):
                needed |= names_in(inner)
    keep_only(graph.node, lambda node: node.name in kept)
