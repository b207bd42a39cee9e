"""Rules of operations that slide over the picture or resample it. Labels along the channels pass; others cannot."""

from collections.abc import Sequence

from pipeline.graph.labels.fields import Value
from pipeline.graph.labels.trace import Node, Trace, rule

__all__ = ["over_the_picture", "without_labels"]


POOLS = (
    "AveragePool",
    "MaxPool",
    "LpPool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GlobalLpPool",
    "MaxUnpool",
    "MaxRoiPool",
    "RoiAlign",
)
RESAMPLERS = ("Resize", "Upsample", "GridSample", "Col2Im")


@rule(*POOLS, *RESAMPLERS)
def over_the_picture(node: Node, trace: Trace) -> Sequence[Value]:
    """The axes after the first two are mixed."""
    value = trace.value(node.inputs[0])
    value = trace.constant(value, range(2, len(value.shape)), f"{node} mixes its channels")
    for name in (name for name in node.inputs[1:] if name not in trace.constants):
        trace.freeze(trace.value(name), f"its channels say where {node} reads")
    fields = tuple(labels for labels in value.fields if labels.ndim == len(node.shapes[0]) and labels.shape[0] == 1)
    for labels in value.fields:
        if not any(labels is kept for kept in fields):
            trace.unions.freeze(labels, f"its channels are the batch of {node}")
    return [Value(shape, fields) for shape in node.shapes]


@rule("Shape", "Size", "ConstantOfShape", "Range", "Constant", "RandomNormal", "RandomUniform", "EyeLike", "NonZero")
def without_labels(node: Node, trace: Trace) -> Sequence[Value]:
    """The output says nothing about the channels of the input, or is made of constants."""
    if node.op_type == "NonZero":
        trace.freeze(trace.value(node.inputs[0]), f"its channels are counted by {node}")
    return [Value(shape) for shape in node.shapes]
