"""Trial: the sliced graph and the silenced graph of one network, with random weights, on one random input."""

import gc
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from pipeline.core.onnx_outputs import largest_difference, open_session
from pipeline.core.plan import Kept
from pipeline.errors import TraceError
from pipeline.graph.edit import copy_of, outline_of
from pipeline.graph.labels.space import GraphSpace
from pipeline.graph.silence import silence, silence_blocks, silence_statistics, unread
from pipeline.graph.slice import SliceableGraph, prepare
from pipeline.graph.to_torch import network_of
from pipeline.graph.weight_file import assembled

__all__ = ["Answers", "Trial", "start_trial"]

SEED = 0
"""The trials do not depend on the job's seed, so that a network has one space."""

LARGE_BYTES = 2**27
"""Networks from this size on are freed at once. Collecting takes a second in a program with many objects."""

NUDGE = 1e-9
"""Relative change of the input by which `Trial.is_unsteady` finds out how much a network amplifies a small change."""
STEADY = 1e5
"""Largest amplification at which rounding in double precision stays far below what the proof takes for rounding."""

FLAT = ("Clip", "HardSigmoid", "HardSwish", "Relu", "ThresholdedRelu")
"""Activations that are constant on a range."""

Answers = list[NDArray[Any]]
Precision = Literal["double", "single"]


def start_trial(model: onnx.ModelProto, labelled: GraphSpace, first: Kept, *, with_slopes: bool = True) -> "Trial":
    """A trial in double precision with sloped activations if the network bears both, otherwise with its own, then in single.

    Whether it bears them is tried with the channels of `first`. Activations that are constant on a range, such as ReLU, get a
    slope there: a network whose values all fall into that range would answer zero for every plan, and a wrong group would pass.
    Which channels belong together does not depend on it. A network that needs positive values, for example for a root, or that
    limits integers does not run with it. `with_slopes` is False for a network that amplifies rounding with them; see
    `Trial.is_unsteady`.
    """
    sliceable = prepare(model, labelled)
    weights = _random_weights(sliceable)
    graphs = outline_of(model, weights), sliceable
    for sloped in (True, False) if with_slopes else (False,):
        trial = Trial(*(_sloped(graphs) if sloped else graphs), weights)
        trial.has_slopes = sloped
        try:
            trial.silenced(first)
        except Exception:  # any of torch's errors: an op that has no double version, or that has no counterpart in torch
            trial.precision = "single"
            continue
        return trial
    return trial


class Trial:
    """Answers of the sliced and of the silenced graph. The weights exist once in each precision, whatever the plan.

    The silenced graph is the network's own graph, and knows nothing of slices.
    """

    def __init__(self, outline: onnx.ModelProto, sliceable: SliceableGraph, weights: Mapping[str, NDArray[np.generic]]) -> None:
        self.precision: Precision = "double"
        self.has_slopes = False
        self._is_unsteady: bool | None = None
        self._outline, self._sliceable = outline, sliceable.with_weights(weights)
        self._weights = {name: torch.from_numpy(values) for name, values in weights.items()}
        self._is_large = sum(values.nbytes for values in weights.values()) > LARGE_BYTES
        self._dense: dict[str, Tensor] = {}
        self._spoiled: set[str] = set()
        generator = np.random.default_rng(SEED)
        inputs = [value for value in outline.graph.input if value.name not in {each.name for each in outline.graph.initializer}]
        self._inputs = [_input(value, generator) for value in inputs]
        self._last: tuple[Kept, Answers] | None = None

    def sliced(self, kept: Kept) -> Answers:
        """The answers of the sliced graph. Raises any error when the slices do not fit each other."""
        slices = self._sliceable.weight_slices(kept)
        if self.precision == "single":
            return self._single(assembled(slices))
        values = {}
        for tensor, cuts in zip(slices.base.tensors, slices.cuts, strict=True):
            if tensor.name in self._weights and cuts is not None:
                small = self._weights[tensor.name]
                for axis, index in cuts:
                    small = small.index_select(axis, torch.from_numpy(index))
                values[tensor.name] = small.double()
        return self._double(assembled(slices, values=False), values)

    def silenced(self, kept: Kept) -> Answers:
        """The answers of the graph of full width in which nobody reads the channels and blocks that are not `kept`."""
        if self._last and self._last[0] == kept:
            return self._last[1]
        labelled = self._sliceable.labelled
        if self.precision == "single":
            return self._single(silence(_filled(self._outline, self._weights), labelled, kept))
        for name, values in self._weights.items():
            if name not in self._dense:
                self._dense[name] = values.double()
            elif name in self._spoiled:
                self._dense[name].copy_(values)  # no new memory: to get it takes longer than to copy
        self._spoiled.clear()
        for name, gone in unread(labelled, kept):
            self._spoiled.add(name)
            for axis, positions in gone.items():
                self._dense[name].index_fill_(axis, torch.from_numpy(positions), 0)
        silenced = copy_of(self._outline)
        silence_blocks(silenced, labelled, kept)
        silence_statistics(silenced, labelled, kept)
        self._last = kept, self._double(silenced, self._dense)
        return self._last[1]

    def is_unsteady(self, kept: Kept) -> bool:
        """Whether slopes let a tiny change of the input change the answer of the silenced graph so much that rounding could too.

        That happens where a network divides by a sum of activations. With slopes some of them are negative, and the sum can come
        near zero. It is found out once, at the first call.
        """
        if self._is_unsteady is None:
            self._is_unsteady = self.has_slopes and self.precision == "double" and self._amplifies(kept)
        return self._is_unsteady

    def _amplifies(self, kept: Kept) -> bool:
        before, last, inputs = self.silenced(kept), self._last, self._inputs
        try:
            self._last, self._inputs = None, [_nudged(part) for part in inputs]
            return largest_difference(before, self.silenced(kept)) > STEADY * NUDGE
        finally:
            self._last, self._inputs = last, inputs

    def _double(self, model: onnx.ModelProto, values: Mapping[str, Tensor]) -> Answers:
        network = network_of(model, values=values).eval().double()
        tensors = [torch.from_numpy(array) for array in self._inputs]
        with torch.no_grad():
            answer = network(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors))
        found = [part.numpy() for part in (answer if isinstance(answer, tuple) else (answer,))]
        del network
        if self._is_large:
            gc.collect()  # a rebuilt network refers to itself, and Python counts objects and not their bytes
        if not all(np.isfinite(part).all() for part in found if np.issubdtype(part.dtype, np.floating)):
            raise TraceError("the answer is not finite")
        return found

    def _single(self, model: onnx.ModelProto) -> Answers:
        session = open_session(model.SerializeToString(), threads=1)
        names = [entry.name for entry in session.get_inputs()]
        return [np.asarray(answer) for answer in session.run(None, dict(zip(names, self._inputs, strict=True)))]


def _input(value: onnx.ValueInfoProto, generator: np.random.Generator) -> NDArray[np.generic]:
    kind = value.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(generator.standard_normal(shape), dtype=dtype)
    return np.zeros(shape, dtype=dtype)


def _nudged(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Each value is changed by another share, because many networks do not mind a factor."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    shares = 1 + NUDGE * np.random.default_rng(SEED).standard_normal(values.shape)
    return np.asarray(values, dtype=np.float64) * shares


Graphs = tuple[onnx.ModelProto, SliceableGraph]


def _sloped(graphs: Graphs) -> Graphs:
    outline, sliceable = copy_of(graphs[0]), replace(graphs[1], skeleton=copy_of(graphs[1].skeleton))
    for node in (*outline.graph.node, *sliceable.skeleton.graph.node):
        if node.op_type in FLAT and node.domain in ("", "ai.onnx"):
            node.op_type = "LeakyRelu"
            del node.input[1:], node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("alpha", 0.3))
    return outline, sliceable


def _random_weights(sliceable: SliceableGraph) -> dict[str, NDArray[np.generic]]:
    """Random weights where channels belong to them, so that no layer is silent and no two channels are alike, and the network's
    own numbers elsewhere.
    """
    generator = np.random.default_rng(SEED)
    weights: dict[str, NDArray[np.generic]] = {}
    for weight in sliceable.weights:
        shape, dtype = weight.values.shape, weight.values.dtype
        if not np.issubdtype(dtype, np.floating):
            continue
        if not weight.cuts:
            weights[weight.name] = np.array(weight.values)
            continue
        if sum(size > 1 for size in shape) > 1:
            values: NDArray[np.float32] = generator.standard_normal(shape, dtype=np.float32)
            values /= math.sqrt(max(math.prod(shape[1:]), 1))
        else:
            values = generator.random(shape, dtype=np.float32)
            values += 0.5
        weights[weight.name] = values.astype(dtype, copy=False)
    return weights


def _filled(outline: onnx.ModelProto, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
    model = copy_of(outline)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].numpy(), tensor.name))
    return model
