"""Prove: every group is tried before it enters the search space. The sliced graph must have the output of the silenced one.

The trial does not depend on how the groups were found. So a wrong rule leaves a layer unpruned, and never yields a wrong network.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.core.onnx_outputs import TOLERANCE, open_session
from pipeline.core.plan import Group, Kept, NotPrunable
from pipeline.core.progress import Progress, no_progress
from pipeline.errors import TraceError, one_line
from pipeline.graph.edit import copy_of
from pipeline.graph.labels.space import GraphSpace
from pipeline.graph.silence import silence
from pipeline.graph.slice import SliceableGraph, prepare
from pipeline.graph.to_torch import network_of

__all__ = ["Proven", "prove_groups"]

EXACT = 1e-9
"""Largest difference that counts as rounding in double precision, as a share of the largest output."""

SEED = 0
"""The trials do not depend on the job's seed, so that a network has one space."""

LARGE_BYTES = 2**27
"""Networks from this size on are freed at once. Collecting takes a second in a program with many objects."""

FLAT = ("Clip", "HardSigmoid", "HardSwish", "Relu", "ThresholdedRelu")
"""Activations that are constant on a range."""


@dataclass(frozen=True)
class Proven:
    """The groups that passed, the groups that failed with reasons, and the precision of the trial."""

    groups: tuple[Group, ...]
    refused: tuple[NotPrunable, ...]
    precision: str
    worst: float
    """The largest difference of the last trial, as a share of the largest output."""


def prove_groups(model: onnx.ModelProto, labelled: GraphSpace, progress: Progress = no_progress) -> Proven:
    """Try all groups together, and halve the set where the trial fails, until the groups that fail are found.

    `model` is the trainable graph that `labelled` was found for. Every trial runs with random weights, once with about half
    of the channels of each group and once with one channel removed. The outputs are compared in double precision, or in single
    precision where the network does not run in double.
    """
    trial = _trial(model, labelled)
    good: list[Group] = []
    refused: list[NotPrunable] = []
    total = len(labelled.space.groups)
    waiting = [list(labelled.space.groups)] if total else []
    while waiting:
        groups = waiting.pop()
        decided = len(good) + len(refused)
        text = f"testing the channel groups, {decided} of {total} decided"
        progress(2 * decided, 2 * total, text)
        # the first of the two comparisons is half of the work for these groups
        reason = trial.misfit([*good, *groups], partial(progress, 2 * decided + len(groups), 2 * total, text))
        if reason is None:
            good += groups
        elif len(groups) == 1:
            refused.append(NotPrunable(groups[0].name, reason))
        else:
            middle = len(groups) // 2
            waiting += [groups[middle:], groups[:middle]]
    order = {group.name: number for number, group in enumerate(labelled.space.groups)}
    progress(2 * total, 2 * total, "the channel groups are tested")
    return Proven(tuple(sorted(good, key=lambda group: order[group.name])), tuple(refused), trial.precision, trial.worst)


def _trial(model: onnx.ModelProto, labelled: GraphSpace) -> "_Trial":
    """A trial in double precision with sloped activations if the network bears both, otherwise with its own, then in single."""
    for sloped in (True, False):
        trial = _Trial(_enlivened(model, labelled, sloped=sloped), labelled)
        if trial.precision == "double":
            break
    return trial


class _Trial:
    """Compares sliced and silenced graphs of one network with random weights."""

    def __init__(self, model: onnx.ModelProto, labelled: GraphSpace) -> None:
        self.model, self.labelled = model, labelled
        self.sliceable: SliceableGraph = prepare(model, labelled)
        self.worst = 0.0
        self.precision = "double"
        generator = np.random.default_rng(SEED)
        self.inputs = [_input(value, generator) for value in _inputs(model)]
        try:
            _answers(model, self.inputs, double=True)
        except Exception:  # any of torch's errors: an op that has no double version, or that has no counterpart in torch
            self.precision = "single"

    def misfit(self, groups: Sequence[Group], half_done: Callable[[], None]) -> str | None:
        """The reason why channels of `groups` cannot be removed, or None when they can. Calls `half_done` in the middle."""
        self.worst = 0.0
        generator = np.random.default_rng(SEED)
        # half may pass by chance, by removing equally many channels from each part of a split; so one is tried as well
        for half in (True, False):
            kept = {
                group.name: tuple(sorted(generator.permutation(group.channels)[group.channels // 2 if half else 1 :].tolist()))
                for group in groups
            }
            reason = self._compare(kept)
            if reason:
                return reason
            if half:
                half_done()
        return None

    def _compare(self, kept: Kept) -> str | None:
        double = self.precision == "double"
        try:
            small = _answers(self.sliceable.slice(kept), self.inputs, double=double)
        except Exception as problem:
            return f"the network does not run without it ({one_line(problem, 120)})"
        whole = _answers(silence(self.model, self.labelled, kept), self.inputs, double=double)
        for one, other in zip(small, whole, strict=True):
            if one.shape != other.shape:
                return "its channels are the network's output"
            difference = float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-6))
            if not difference <= (EXACT if double else TOLERANCE):
                return f"removing its channels changes more than they carry (by {100 * difference:.2g} % of the largest output)"
            self.worst = max(self.worst, difference)
        return None


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _input(value: onnx.ValueInfoProto, generator: np.random.Generator) -> NDArray[np.generic]:
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(generator.standard_normal(shape), dtype=dtype)
    return np.zeros(shape, dtype=dtype)


def _answers(model: onnx.ModelProto, inputs: Sequence[NDArray[np.generic]], *, double: bool) -> list[NDArray[Any]]:
    if not double:
        session = open_session(model.SerializeToString(), threads=1)
        names = [entry.name for entry in session.get_inputs()]
        return [np.asarray(answer) for answer in session.run(None, dict(zip(names, inputs, strict=True)))]
    network = network_of(model).eval().double()
    tensors = [torch.from_numpy(array) for array in inputs]
    with torch.no_grad():
        answer = network(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors))
    found = [part.numpy() for part in (answer if isinstance(answer, tuple) else (answer,))]
    del network
    if model.ByteSize() > LARGE_BYTES:
        gc.collect()  # a rebuilt network refers to itself, and Python counts objects and not their bytes
    if not all(np.isfinite(part).all() for part in found if np.issubdtype(part.dtype, np.floating)):
        raise TraceError("the answer is not finite")
    return found


def _enlivened(model: onnx.ModelProto, labelled: GraphSpace, *, sloped: bool) -> onnx.ModelProto:
    """`model` with random weights, so that no layer is silent and no two channels are alike, whatever the user's weights are.

    If `sloped`, activations that are constant on a range, such as ReLU, get a slope there: a network whose values all fall into
    that range would answer zero for every plan, and a wrong group would pass. Which channels belong together does not depend on
    it. A network that needs positive values, for example for a root, or that limits integers does not run with it.
    """
    lively = copy_of(model)
    for node in lively.graph.node:
        if sloped and node.op_type in FLAT and node.domain in ("", "ai.onnx"):
            node.op_type = "LeakyRelu"
            del node.input[1:], node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("alpha", 0.3))
    generator = np.random.default_rng(SEED)
    for tensor in lively.graph.initializer:
        if not any((tensor.name, axis) in labelled.numbers for axis in range(len(tensor.dims))):
            continue
        shape = tuple(tensor.dims)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if sum(size > 1 for size in shape) > 1:
            values = generator.standard_normal(shape, dtype=np.float32)
            values /= np.sqrt(max(np.prod(shape[1:]), 1))
        else:
            values = generator.random(shape, dtype=np.float32)
            values += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype, copy=False), tensor.name))
    return lively
