"""PrunableNetwork: one network as two sliceable graphs, and the torch module that is pruned in the same way.

The trainable graph has its normalisation layers. The deployed graph is the same network with them folded away; it is what is
measured and shipped. The torch module is the user's own if its code runs with fewer channels, and otherwise one that is rebuilt
from the graph.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pipeline.core.batch import Inputs, arrays_in, outputs_of
from pipeline.core.onnx_outputs import all_outputs, largest_difference
from pipeline.core.plan import Block, Kept, NotPrunable, PruneSpace
from pipeline.errors import TraceError, one_line
from pipeline.graph.drop_blocks import drop_blocks
from pipeline.graph.edit import remove_unused
from pipeline.graph.fold import fold
from pipeline.graph.labels.space import GraphSpace, label_graph
from pipeline.graph.metadata import constants_of
from pipeline.graph.move_weights import move_weights
from pipeline.graph.rounding import agrees
from pipeline.graph.shrink import all_channels, shrink
from pipeline.graph.skip_block import ways_to_skip
from pipeline.graph.slice import SliceableGraph, prepare
from pipeline.graph.to_torch import GraphNetwork, TorchTensor, network_of
from pipeline.graph.torch_space import in_both, torch_space
from pipeline.system.user_files import own_line

__all__ = [
    "PLANS",
    "Origin",
    "PrunableNetwork",
    "learnable",
    "network_of_skeleton",
    "pair_with_module",
    "random_kept",
    "rebuild_from_graph",
]

Origin = Literal["own", "rebuilt"]
"""Whose module is pruned: the user's own, or one that is rebuilt from the graph."""

LARGEST_NETWORK = 2**29
"""Number of values of all weights together: one ONNX file holds less than 2 GiB."""
PLANS = 3
"""Number of random plans by which the torch module is compared with the deployed graph."""


@dataclass(frozen=True)
class PrunableNetwork:
    """A network that can be pruned in torch and in ONNX alike."""

    module: nn.Module
    origin: Origin
    space: PruneSpace
    """The groups. The tensors of the slots are those of the module's state dict."""
    trainable: SliceableGraph
    deployed: SliceableGraph
    tensors: Mapping[str, TorchTensor]
    """Initializer of the trainable graph -> its tensor in the module's state dict."""
    worst: float = 0.0
    """The largest difference between module and deployed graph, as a share of the largest output."""
    reason: str = ""
    """Why the user's own module is not the one that is pruned, if it is not."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Node -> where it is in the user's network, in words; see `places_of`."""

    def trained(self, module: nn.Module, kept: Kept) -> onnx.ModelProto:
        """The deployed graph of `kept` with the weights of `module`, a pruned and perhaps trained network.

        Dropped blocks are taken out last, because without them other normalisation layers could be folded than in the graph that
        was measured.
        """
        whole = {name: channels for name, channels in kept.items() if channels}
        model = fold(_filled(self.trainable.slice(whole), self.tensors, module.state_dict())).model
        dropped = self.deployed.labelled.space.dropped(kept)
        if dropped:
            drop_blocks(model.graph, dropped)
            remove_unused(model.graph)
        return model


def pair_with_module(
    module: nn.Module,
    model: onnx.ModelProto,
    labelled: GraphSpace,
    tensors: Mapping[str, TorchTensor],
    example: Inputs,
) -> PrunableNetwork:
    """Choose the torch module, and compare it with the deployed graph for random plans.

    `model` is the trainable graph of `module`, `labelled` its proven groups, and `tensors` what `match_weights` found. Raises
    TraceError when neither the user's module nor the rebuilt one answers like the graph.
    """
    folded = fold(model).model
    labelled, deployed = in_both(labelled, label_graph(folded, labelled.grouped), folded)
    graphs = prepare(model, labelled), prepare(folded, deployed)
    space = torch_space(labelled, tensors, constants_of(model) or ())
    reason: str | None
    if isinstance(module, GraphNetwork):
        reason = "it is given as an ONNX file"
    elif isinstance(space, str):
        reason = f"the weights of '{space}' are computed from other tensors"
    else:
        own = PrunableNetwork(module, "own", replace(space, blocks=()), *graphs, tensors)
        reason, worst = _misfit(own, example)
        if reason is None:
            own, reason = _with_skips(own, space.blocks, example)
        if reason is None and space.blocks:
            reason, worst = _misfit(own, example)
        if reason is None:
            return replace(own, worst=worst)
    return _rebuilt(model, labelled, graphs, example, str(reason))


def _with_skips(found: PrunableNetwork, blocks: tuple[Block, ...], example: Inputs) -> tuple[PrunableNetwork, str | None]:
    """The network with `blocks`, and for each the modules to replace when it is dropped; and the reason if one has none."""
    known = {place.name for place in found.tensors.values()}
    for block in blocks:
        for skipped in ways_to_skip(found.module, block, known):
            trial = replace(found, space=replace(found.space, blocks=(*found.space.blocks, skipped)))
            if _misfit_of(trial, {**all_channels(trial.space), block.name: ()}, example, moved=False)[0] is None:
                found = trial
                break
        else:
            return found, f"its code does not run without the block {block.name}"
    return found, None


def rebuild_from_graph(found: PrunableNetwork, example: Inputs, reason: str) -> PrunableNetwork:
    """The same network with the torch module rebuilt from the graph, because of `reason`. Raises TraceError."""
    labelled = found.trainable.labelled
    return _rebuilt(found.trainable.slice({}), labelled, (found.trainable, found.deployed), example, reason)


def _rebuilt(
    model: onnx.ModelProto,
    labelled: GraphSpace,
    graphs: tuple[SliceableGraph, SliceableGraph],
    example: Inputs,
    reason: str,
) -> PrunableNetwork:
    try:
        network = network_of(model, learnable(model))
    except TraceError as problem:
        raise TraceError(
            f"the network cannot be pruned in torch: its own module is not used, because {reason}; and it cannot be rebuilt from "
            f"its graph: {problem}"
        ) from None
    network.labelled = labelled
    network.node_indices = {node.name: index for index, node in enumerate(model.graph.node)}
    space = torch_space(labelled, network.tensors)
    if isinstance(space, str):
        raise TraceError(f"the network cannot be rebuilt from its exported graph: the weights of '{space}' are missing there")
    rebuilt = PrunableNetwork(network, "rebuilt", space, *graphs, network.tensors, reason=reason)
    failure, worst = _misfit(rebuilt, example)
    if failure is not None and space.blocks:
        refused = tuple(NotPrunable(block.name, f"the block cannot be dropped: {failure}") for block in space.blocks)
        rebuilt = replace(rebuilt, space=replace(space, blocks=(), frozen=(*space.frozen, *refused)))
        failure, worst = _misfit(rebuilt, example)
    if failure is not None:
        raise TraceError(
            f"the pruned network does not have the output of its sliced graph: neither the network itself ({reason}) "
            f"nor the copy that is rebuilt from the graph ({failure})"
        )
    return replace(rebuilt, worst=worst)


def network_of_skeleton(skeleton: onnx.ModelProto) -> GraphNetwork:
    """The torch module of a trainable graph without weights. All its weights are zero. Raises TraceError."""
    total = 0
    for tensor in skeleton.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and not (tensor.raw_data or tensor.float_data):
            total += math.prod(tensor.dims)
            if total > LARGEST_NETWORK or any(size < 0 for size in tensor.dims):
                raise TraceError(f"with a weight of shape {tuple(tensor.dims)} it is larger than an ONNX file can hold")
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), dtype=np.float32), tensor.name))
    return network_of(skeleton, learnable(skeleton))


def learnable(model: onnx.ModelProto) -> set[str] | None:
    """The initializers of a trainable graph that training changes; None if the graph does not say."""
    constants = constants_of(model)
    if constants is None:
        return None
    return {tensor.name for tensor in model.graph.initializer if tensor.name.partition("#")[0] not in constants}


def random_kept(space: PruneSpace, seed: int) -> Kept:
    """Return a random choice of channels in every group. The number of channels is also random, and at least one.

    About half of the blocks are dropped.
    """
    generator = np.random.default_rng(seed)
    kept = {
        group.name: tuple(sorted(generator.permutation(group.channels)[: generator.integers(1, group.channels + 1)].tolist()))
        for group in space.groups
    }
    return kept | {block.name: () for block in space.blocks if generator.random() < 0.5}


def _misfit(found: PrunableNetwork, example: Inputs) -> tuple[str | None, float]:
    """Why the pruned module does not answer like the deployed graph, or None, and the largest difference.

    Weights are changed before the comparison, so that a weight that does not reach the graph is noticed.
    """
    worst = 0.0
    for number in range(PLANS):
        failure, difference = _misfit_of(found, random_kept(found.space, number), example, moved=number == PLANS - 1)
        if failure is not None:
            return failure, worst
        worst = max(worst, difference)
    return None, worst


def _misfit_of(found: PrunableNetwork, kept: Kept, example: Inputs, *, moved: bool) -> tuple[str | None, float]:
    """The same for one plan. The weights are changed before the comparison if `moved`."""
    try:
        small = shrink(found.module, found.space, kept).eval()
        if moved:
            move_weights(small)
        with torch.no_grad():
            expected = arrays_in(outputs_of(small(example)))
    except Exception as problem:  # the user's own code may raise anything
        line = own_line(problem)
        where = f" ({line})" if line else ""
        return f"it does not run with fewer channels: {one_line(problem, 120)}{where}", 0.0
    model = found.trained(small, kept) if moved else found.deployed.slice(kept)
    data = model.SerializeToString()
    try:
        answer = all_outputs(data, arrays_in(example))
    except Exception as problem:
        return f"ONNX Runtime does not run the sliced graph: {one_line(problem, 120)}", 0.0
    difference = largest_difference(expected, answer)
    if not agrees(expected, answer, small, example, data):
        return f"its answer differs by {100 * difference:.3g} % of the largest output", 0.0
    return None, difference


def _filled(model: onnx.ModelProto, tensors: Mapping[str, TorchTensor], state: Mapping[str, Tensor]) -> onnx.ModelProto:
    """`model`, in place, with the values of `state`."""
    for initializer in model.graph.initializer:
        place = tensors.get(initializer.name)
        if place is not None and place.name in state:  # the tensors of a dropped block are not
            values = state[place.name].detach().cpu()
            if values.dim() == len(place.axes) and -1 not in place.axes:
                values = values.permute(place.axes)
            dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
            array = np.ascontiguousarray(values.numpy(), dtype=dtype).reshape(tuple(initializer.dims))  # it may be a scalar
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    return model
