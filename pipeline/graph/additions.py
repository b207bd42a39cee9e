"""Additions: the nodes of an exported graph that add values, in all their spellings."""

from collections.abc import Collection, Mapping

import onnx

from pipeline.graph.shapes import Shape

__all__ = ["ADDS_TWO", "addends_of", "is_plain", "terms_of"]

ADDS_TWO = ("Add", "Sub", "Sum")
"""Operators at which a block can end, if they have two inputs. In x - f(x), f(x) leaves as in x + f(x)."""

Producers = Mapping[str, onnx.NodeProto]
"""Value -> the node that computes it."""


def is_plain(node: onnx.NodeProto) -> bool:
    """Whether a node adds or subtracts exactly two values, so that one of them can take the place of the result."""
    return node.op_type in ADDS_TWO and node.domain in ("", "ai.onnx") and len(node.input) == 2


def addends_of(node: onnx.NodeProto, producers: Producers) -> tuple[str, ...]:
    """The values that a node adds; () if it adds none.

    These are the inputs of Add, Sub and Sum; C and A of a Gemm, which computes A B + C; and the values that were stacked and
    then summed, as in torch.stack([x, y]).sum(0).
    """
    if node.domain not in ("", "ai.onnx"):
        return ()
    if node.op_type in ADDS_TWO:
        return tuple(node.input)
    if node.op_type == "Gemm" and len(node.input) == 3:
        return node.input[2], node.input[0]
    stack = producers.get(node.input[0]) if node.op_type == "ReduceSum" else None
    if stack is None or stack.op_type != "Concat":
        return ()
    parts = [producers.get(name) for name in stack.input]
    return tuple(part.input[0] for part in parts if part is not None and part.op_type == "Unsqueeze")


def terms_of(name: str, producers: Producers, shapes: Mapping[str, Shape], constants: Collection[str]) -> list[str]:
    """`name` and the values whose sum it is, as far as they have its shape. Those that are subtracted or constant are left out.

    For x + attention(x) these are the sum, x, the attention's result, and the terms of both.
    """
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        term = waiting.pop()
        if term in found or term in constants or shapes.get(term) != shapes.get(name):
            continue
        found[term] = None
        node = producers.get(term)
        if node is not None and node.op_type in ADDS_TWO and node.domain in ("", "ai.onnx"):
            waiting += node.input[:1] if node.op_type == "Sub" else node.input
    return list(found)
