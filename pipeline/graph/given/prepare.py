"""Prepare: turn an untrusted ONNX file into a trainable graph. This runs in a process of its own, with limits; see `read`."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_ir
from numpy.typing import NDArray
from onnx import helper

from pipeline.core.feeds import shapes_text
from pipeline.core.onnx_outputs import largest_difference, open_session
from pipeline.errors import one_line
from pipeline.graph.bounded_child import limit_memory
from pipeline.graph.edit import copy_of, keep_only, remove_bypasses, remove_unused
from pipeline.graph.given.door import Door, Refused, Shapes, make_doors
from pipeline.graph.given.floats import to_single
from pipeline.graph.given.names import name_layers
from pipeline.graph.given.rewrite import fuse_biases, lift_weights
from pipeline.graph.metadata import CONSTANTS, keep_only_own, opset_of, stamp
from pipeline.graph.optimise import optimise_trainable
from pipeline.graph.structure import load_graph

__all__ = ["EXPORTER", "Facts", "Prepared", "prepare"]

OLDEST_OPSET = 7
EXPORTER = "another program"
TOLERANCE, HALF_TOLERANCE = 1e-4, 2e-2
"""Largest difference from the file's own answer, as a share of the largest output. A file in half precision is rounded more."""
TRIES = 2
"""Number of random inputs on which the graph is compared with the file."""
QUANTISED = ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")


@dataclass(frozen=True)
class Facts:
    """What was found and changed."""

    doors: tuple[Door, ...]
    """One per input, in order."""
    outputs: tuple[str, ...]
    opset: int
    """Opset of the file."""
    ends_with_softmax: bool
    single: bool
    """Whether the file has half or double precision, which became single precision."""
    batchnorms: int
    """Number of BatchNormalization nodes that were not folded away."""
    difference: float
    """From the file's own answer, as a share of the largest output."""


@dataclass(frozen=True)
class Prepared:
    """A trainable graph, and what was found."""

    model: onnx.ModelProto
    facts: Facts


def prepare(data: bytes, shapes: Shapes, opset: int, highest_opset: int, *, convert: bool = True) -> Prepared:
    """Return the trainable graph of the ONNX file `data`. It answers like the file on random inputs.

    `shapes` fixes free dimensions. The graph gets `opset` if it can be converted, otherwise it keeps its own. Raises Refused,
    whose message continues the name of the file.
    """
    original = _sound(data)
    candidates = [_with_opset(original, opset, highest_opset)] if convert else []
    if opset_of(original) <= highest_opset:
        candidates.append(original)
    reason = f"has opset {opset_of(original)}, and the device reads, or the profile asks for, {highest_opset}; export it again"
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            return _prepared(data, candidate, shapes)
        except (Refused, MemoryError):
            raise
        except Exception as problem:  # protobuf, onnx, onnx_ir and ONNX Runtime have their own errors
            reason = f"cannot be prepared ({one_line(problem, 200)})"
    raise Refused(reason)


def _sound(data: bytes) -> onnx.ModelProto:
    """The parsed file, without functions. Raises Refused if it cannot be pruned in any case."""
    try:
        model = load_graph(data)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except Exception as problem:
        raise Refused(f"not an ONNX file that can be compressed ({one_line(problem, 120)})") from None
    if any(size < 0 for tensor in model.graph.initializer for size in tensor.dims):
        raise Refused("not an ONNX file that can be compressed (a weight has a dimension below zero)")
    found = opset_of(model)
    if not OLDEST_OPSET <= found <= onnx.defs.onnx_opset_version():
        raise Refused(f"has opset {found}; {OLDEST_OPSET} to {onnx.defs.onnx_opset_version()} can be read; export it again")
    for node in model.graph.node:
        if node.op_type in QUANTISED:
            raise Refused(f"is quantised (node '{node.name}', {node.op_type}); give the float file that it was made from")
        if node.domain not in ("", "ai.onnx"):
            raise Refused(
                f"has the operator {node.domain}.{node.op_type} (node '{node.name}'), which is not standard; give the file as it "
                "was before a runtime optimised it"
            )
    keep_only(model.opset_import, lambda entry: entry.domain in ("", "ai.onnx"))
    weights = {tensor.name for tensor in model.graph.initializer}
    keep_only(model.graph.input, lambda value: value.name not in weights)
    return model


def _with_opset(model: onnx.ModelProto, opset: int, highest_opset: int) -> onnx.ModelProto | None:
    """`model` with an opset from `opset` to `highest_opset`; None if it has one, or if it cannot be converted."""
    found = opset_of(model)
    if opset <= found <= highest_opset:
        return None
    try:
        return onnx.version_converter.convert_version(model, opset if found < opset else highest_opset)
    except Exception:  # the converter raises errors of many classes
        return None


def _prepared(data: bytes, model: onnx.ModelProto, shapes: Shapes) -> Prepared:
    model = copy_of(model)
    opset = opset_of(load_graph(data))
    doors = make_doors(model, shapes)
    single = to_single(model)
    remove_bypasses(model.graph)
    lift_weights(model.graph)
    model = _optimised(model)
    fuse_biases(model.graph)
    remove_unused(model.graph)
    name_layers(model)
    keep_only_own(model)
    keep_only(model.metadata_props, lambda entry: entry.key != CONSTANTS)  # the file does not say what is learnable
    stamp(model, {"exporter": EXPORTER})
    model.ir_version = 10
    difference = _difference(data, model, doors, HALF_TOLERANCE if single else TOLERANCE)
    outputs = tuple(value.name for value in model.graph.output)
    last = next(node for node in model.graph.node if outputs[0] in node.output)
    norms = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    return Prepared(model, Facts(doors, outputs, opset, last.op_type == "Softmax", single, norms, difference))


def _optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with constants folded, in particular those that follow from the fixed shape of the input."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = onnx_ir.from_proto(inferred)
    optimise_trainable(graph, frozenset(graph.graph.initializers))
    return onnx_ir.to_proto(graph)


def _difference(data: bytes, model: onnx.ModelProto, doors: tuple[Door, ...], allowed: float) -> float:
    """The largest difference of the answers of `model` from those of the file `data`. Raises Refused above `allowed`."""
    try:  # without optimisation, because fused operators round otherwise, and outputs for random numbers may be tiny
        session = open_session(data, threads=1, optimized=False)
    except Exception as problem:
        raise Refused(f"ONNX Runtime does not load it ({one_line(problem, 200)})") from None
    ours = open_session(model.SerializeToString(), threads=1, optimized=False)
    worst = 0.0
    for number in range(TRIES):
        feed = {door.name: _random_input(door, number) for door in doors}
        own = {door.name: _as_the_file_takes(feed[door.name], door) for door in doors}
        try:
            expected = [np.asarray(answer) for answer in session.run(None, own)]
        except Exception as problem:
            shapes = shapes_text([array.shape for array in own.values()])
            several = [f"'{each.name}'" for each in session.get_inputs() if each.shape and _is_several(each.shape[0])]
            why = f"; the first axis must be the sample, and that of {', '.join(several)} may not be" if several else ""
            raise Refused(f"ONNX Runtime does not run it for inputs of {shapes} ({one_line(problem, 200)}){why}") from None
        found = [np.asarray(answer) for answer in ours.run(None, feed)]
        for value, answer in zip(model.graph.output, found, strict=True):
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, answer.shape))
        if not all(np.isfinite(answer).all() for answer in expected):
            raise Refused("gives an answer that is not finite for a random input; its weights may be damaged")
        single = [answer.astype(np.float32) if answer.dtype.kind == "f" else answer for answer in expected]
        worst = max(worst, largest_difference(single, found))
    if not worst <= allowed:
        raise ValueError(f"the prepared graph answers differently, by {100 * worst:.2g} % of the largest output")
    return worst


def _is_several(size: object) -> bool:
    """Whether a first axis is fixed to more than one. It is taken for a batch, and one sample is used."""
    return isinstance(size, int) and size > 1


def _random_input(door: Door, number: int) -> NDArray[Any]:
    """A random image, or numbers. Integers that are no image may be indices or masks, so they are all `number`."""
    generator = np.random.default_rng(number)
    if not np.issubdtype(np.dtype(door.type), np.floating):
        return np.full(door.shape, number, dtype=door.type)
    if np.issubdtype(np.dtype(door.own_type), np.integer):
        return generator.integers(0, 128, door.shape).astype(np.float32)
    return generator.standard_normal(door.shape).astype(np.float32)


def _as_the_file_takes(array: NDArray[Any], door: Door) -> NDArray[Any]:
    own = array.transpose(0, *range(2, array.ndim), 1) if door.channels_last else array
    return np.ascontiguousarray(own).astype(door.own_type)


def _main() -> None:
    """Answer on standard output: a line of JSON, then the graph."""
    limit_memory(int(sys.argv[1]))
    asked: dict[str, Any] = json.loads(sys.argv[2])
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get into the answer
    shapes = {name: tuple(shape) for name, shape in asked["shapes"].items()}
    try:
        made = prepare(sys.stdin.buffer.read(), shapes, asked["opset"], asked["highest_opset"], convert=asked["convert"])
        head, body = asdict(made.facts), made.model.SerializeToString(deterministic=True)
    except Refused as problem:
        head, body = {"refused": str(problem)}, b""
    answer.write(json.dumps(head).encode() + b"\n" + body)
    answer.close()


if __name__ == "__main__":
    _main()
