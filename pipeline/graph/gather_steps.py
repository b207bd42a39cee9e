"""Gather steps: a Slice that takes some channels in steps, as `x[:, ::2]`, becomes a Gather.

After some of its channels are removed, no start, end and step give the others. The indices of a Gather can name any channels.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.graph.edit import free_name, names_in, unique_name
from pipeline.graph.labels.space import GraphSpace, label_graph
from pipeline.graph.labels.trace import Grouped
from pipeline.graph.shapes import shapes_of

__all__ = ["gather_steps", "label_with_steps"]


def label_with_steps(model: onnx.ModelProto, grouped: Grouped = "evenly") -> GraphSpace:
    """`label_graph`, after each Slice that takes channels in steps has become a Gather in `model`, in place.

    Such a Slice can hide another one behind it, so the graph is labelled again until none is found.
    """
    labelled = label_graph(model, grouped)
    while labelled.in_steps:
        gather_steps(model, labelled.in_steps)
        labelled = label_graph(model, grouped)
    return labelled


def gather_steps(model: onnx.ModelProto, cuts: frozenset[tuple[str, int]]) -> None:
    """Let a Gather do what a Slice does along an axis, in place, for each (name of the Slice, axis) of `cuts`.

    y = Slice(x, starts = [0, 0], ends = [8, 6], axes = [1, 2], steps = [2, 1])
    y = Slice(Gather<axis = 1>(x, [0, 2, 4, 6]), [0], [6], [2], [1])
    """
    shapes, constants = shapes_of(model), _integers(model)
    names, nodes = {node.name for node in model.graph.node}, list(model.graph.node)
    values = names_in(model.graph)
    del model.graph.node[:]
    for node in nodes:
        axes = {axis for name, axis in cuts if name == node.name}
        model.graph.node.extend(_with_gathers(node, axes, shapes[node.input[0]], constants, (names, values)) if axes else [node])


def _with_gathers(
    node: onnx.NodeProto,
    gathered: set[int],
    shape: tuple[int, ...],
    constants: dict[str, list[int]],
    taken: tuple[set[str], set[str]],
) -> list[onnx.NodeProto]:
    """`taken` are the names of nodes and of values."""
    names, values = taken
    made: list[onnx.NodeProto] = []

    def constant(value: list[int], what: str) -> str:
        name = free_name(f"{node.name}/{what}", values)
        values.add(name)
        tensor = numpy_helper.from_array(np.asarray(value, dtype=np.int64))
        made.append(helper.make_node("Constant", [], [name], name=unique_name(name, names), value=tensor))
        return name

    starts, ends = (constants[name] for name in node.input[1:3])
    given = [constants[name] if name else [] for name in (*node.input[3:], "", "")[:2]]
    axes = [axis % len(shape) for axis in given[0] or range(len(starts))]
    ranges = dict(zip(axes, zip(starts, ends, given[1] or [1] * len(starts), strict=True), strict=True))
    source = node.input[0]
    for axis in sorted(gathered):
        start, end, step = ranges.pop(axis)
        indices = constant(list(range(*slice(start, end, step).indices(shape[axis]))), f"positions_{axis}")
        output = free_name(f"{node.name}/gathered_{axis}", values) if ranges else node.output[0]
        values.add(output)
        gather = helper.make_node(
            "Gather", [source, indices], [output], name=unique_name(f"{node.name}/gather_{axis}", names), axis=axis
        )
        gather.metadata_props.extend(node.metadata_props)
        made.append(gather)
        source = output
    if ranges:
        rest = [list(part) for part in zip(*ranges.values(), strict=True)]
        bounds = dict(zip(("starts", "ends", "axes", "steps"), (rest[0], rest[1], list(ranges), rest[2]), strict=True))
        node.input[:] = [source, *(constant(value, key) for key, value in bounds.items())]
        made.append(node)
    return made


def _integers(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The integer constants of `model` that have at most one axis."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    kinds = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    small = {name: tensor for name, tensor in tensors.items() if tensor.data_type in kinds and len(tensor.dims) <= 1}
    return {name: np.atleast_1d(numpy_helper.to_array(tensor)).tolist() for name, tensor in small.items()}
