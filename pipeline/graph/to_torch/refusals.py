"""Refusals: what torch cannot express is refused when a network is built, with the node and the op in the message."""

from collections.abc import Callable

import onnx

from pipeline.errors import TraceError
from pipeline.foreign_text import clean_text
from pipeline.graph.to_torch.node import DTYPES, Node, described
from pipeline.graph.to_torch.ops import FUNCTIONS

__all__ = ["check_node", "check_op"]

_CONTROL_FLOW = ("If", "Loop", "Scan")


def check_op(proto: onnx.NodeProto, index: int) -> bool:
    """Return True if the op has a counterpart in torch. Raises TraceError otherwise."""
    name = clean_text(proto.name or str(index), 80)
    if proto.op_type in _CONTROL_FLOW:
        raise TraceError(
            f"node '{name}' ({proto.op_type}): control flow in the graph cannot be rebuilt in torch; write the network without it"
        )
    if proto.domain not in ("", "ai.onnx") or (proto.op_type not in FUNCTIONS and proto.op_type != "Constant"):
        op = clean_text(f"{proto.domain}.{proto.op_type}" if proto.domain else proto.op_type, 80)
        raise TraceError(f"node '{name}' ({op}) has no counterpart in torch; write the network without it")
    return True


def check_node(node: Node) -> None:
    """Raise TraceError if an option of the node has no counterpart in torch."""
    reason = _CHECKS.get(node.op, _nothing)(node)
    if reason:
        raise TraceError(f"{described(node)}: {reason} cannot be rebuilt in torch; write the network without it")


def _nothing(node: Node) -> str:
    return ""


def _is_given(node: Node, position: int) -> bool:
    return position < len(node.inputs) and node.inputs[position] != ""


_USUAL = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def _recurrent(node: Node) -> str:
    if _is_given(node, 4):
        return "the input sequence_lens"
    if _is_given(node, 7):
        return "the input P (peepholes)"
    if "clip" in node.attributes or node.int("input_forget", 0):
        return "the option 'clip' or 'input_forget'"
    usual = _USUAL[node.op]
    found = tuple(node.attributes.get("activations", ()))
    ways = 2 if node.text("direction", "forward") == "bidirectional" else 1
    if found not in ((), usual * ways) and not (node.op == "RNN" and found == ("Relu",) * ways):
        return f"activations other than {', '.join(usual)}"
    return ""


def _attention(node: Node) -> str:
    if any(_is_given(node, position) for position in range(4, 7)) or any(node.outputs[1:]):
        return "attention with a cache, or with more than one output,"
    return ""


def _element_type(name: str) -> Callable[[Node], str]:
    def check(node: Node) -> str:
        kind = node.attributes.get(name)
        if kind is None or int(kind) in DTYPES:
            return ""
        return f"the element type {clean_text(str(kind), 20)}"

    return check


def _max_pool(node: Node) -> str:
    return "column-major positions ('storage_order')" if node.int("storage_order", 0) and any(node.outputs[1:]) else ""


def _resize(node: Node) -> str:
    return "'tf_crop_and_resize'" if node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize" else ""


_CHECKS: dict[str, Callable[[Node], str]] = {
    "Attention": _attention,
    "Cast": _element_type("to"),
    "EyeLike": _element_type("dtype"),
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "MaxPool": _max_pool,
    "RNN": _recurrent,
    "Resize": _resize,
}
