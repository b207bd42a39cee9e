"""Rules of operations that slide over the picture or resample it. Labels along the channels pass; others cannot."""

from collections.abc import Sequence

from pipeline.graph.labels.fields import Value
from pipeline.graph.labels.trace import Node, Trace, rule

__all__ = ["columns_to_image", "over_the_picture", "without_labels"]


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
RESAMPLERS = ("Resize", "Upsample", "GridSample")


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


@rule("Col2Im")
def columns_to_image(node: Node, trace: Trace) -> Sequence[Value]:
    """The values of one channel stand in several rows of a column, and leave together.

    columns (1, 2 * 4, L)   c0 c0 c0 c0 c1 c1 c1 c1
    image (1, 2, H, W)      c0 c1
    """
    value, shape = trace.value(node.inputs[0]), node.shapes[0]
    value = trace.constant(value, [2], f"{node} mixes its channels")
    rows = trace.vector(value, 1, f"{node} needs the same channels in every part of its input")
    if rows is None:
        return [Value(shape)]
    channels = rows.reshape(shape[1], -1)
    trace.unions.unite(channels, channels[:, :1])
    return [Value(shape, (channels[:, 0].reshape(1, -1, *[1] * (len(shape) - 2)),) if shape[1] > 1 else ())]


@rule("Shape", "Size", "ConstantOfShape", "Range", "Constant", "RandomNormal", "RandomUniform", "EyeLike", "NonZero")
def without_labels(node: Node, trace: Trace) -> Sequence[Value]:
    """The output says nothing about the channels of the input, or is made of constants."""
    if node.op_type == "NonZero":
        trace.freeze(trace.value(node.inputs[0]), f"its channels are counted by {node}")
    return [Value(shape) for shape in node.shapes]
