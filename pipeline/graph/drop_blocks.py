"""Drop blocks: take blocks out of a graph. What reads the result of a block then reads its entry."""

from collections.abc import Container, Iterable

import onnx

from pipeline.core.plan import Block
from pipeline.graph.edit import keep_only, names_in, rename_uses, subgraphs

__all__ = ["drop_blocks"]


def drop_blocks(graph: onnx.GraphProto, blocks: Iterable[Block]) -> None:
    """Take `blocks` out of `graph`, in place, with all nodes that only they need. Initializers stay.

    A ReLU that then reads only values that are not negative changes none of them, and it leaves too.

    The nodes are in the order in which they run, and have names of their own. No block ends at an output of the graph.
    """
    nodes = {node.name: node for node in graph.node}
    sources = {node.output[0]: node.input[block.entry] for block in blocks if (node := nodes[block.node])}
    readers = {node.name for node in graph.node if _is(node, "Relu") and node.input[0] in sources}
    rename_uses(graph, {result: _first(result, sources) for result in sources})
    _remove_idle_relus(graph, readers)
    _keep_needed(graph)


def _first(result: str, sources: dict[str, str]) -> str:
    """The entry of the first of several dropped blocks in a row."""
    while result in sources:
        result = sources[result]
    return result


def _remove_idle_relus(graph: onnx.GraphProto, candidates: Container[str]) -> None:
    """Let the readers of each of these ReLUs read its input, if that is the result of another ReLU, or a maximum of such results.

    ReLU is idempotent: max(max(x, 0), 0) = max(x, 0). Nodes run in order, so what a ReLU reads is known before it.
    """
    outputs = {value.name for value in graph.output}
    positive: set[str] = set()
    idle: dict[str, str] = {}
    for node in graph.node:
        source = idle.get(node.input[0], node.input[0]) if node.input else ""
        if _is(node, "Relu"):
            positive.add(node.output[0])
            if node.name in candidates and source in positive and node.output[0] not in outputs:
                idle[node.output[0]] = source
        elif _is(node, "MaxPool") and source in positive:
            positive.add(node.output[0])
    rename_uses(graph, idle)


def _is(node: onnx.NodeProto, operator: str) -> bool:
    return node.op_type == operator and node.domain in ("", "ai.onnx")


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
