"""Proof: check slicing in ONNX against pruning in torch, and pruning in torch against torch-pruning."""

import copy
import warnings

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from pipeline.core.onnx_outputs import TOLERANCE, largest_difference, run_onnx
from pipeline.core.plan import Group, Kept, PruneSpace
from pipeline.errors import TraceError, one_line
from pipeline.graph.shrink import shrink
from pipeline.graph.slice import SliceableGraph

__all__ = ["Disagreement", "prove_shrink", "prove_slice", "random_kept"]


class Disagreement(Exception):
    """The torch and ONNX versions of one pruned network give different outputs."""


def prove_slice(module: nn.Module, graph: SliceableGraph, example: Tensor, seed: int) -> float:
    """Slice the graph and prune the torch network by the same random plan, and compare their outputs for `example`.

    Returns the largest difference as a share of the largest output. Raises Disagreement when it exceeds TOLERANCE or
    when ONNX Runtime does not run the graph.
    """
    kept = random_kept(graph.space, seed)
    with torch.no_grad():
        expected = shrink(module, graph.space, kept).eval()(example).numpy()
    try:
        found = run_onnx(graph.slice(kept).SerializeToString(), example.numpy())
    except Exception as problem:
        raise Disagreement(f"ONNX Runtime does not run the sliced graph: {one_line(problem)}") from None
    difference = largest_difference(expected, found)
    if not difference <= TOLERANCE:
        raise Disagreement(f"the sliced graph's answer is off by {100 * difference:.3g} % of the largest output")
    return difference


def prove_shrink(module: nn.Module, space: PruneSpace, example: Tensor, seed: int) -> float:
    """Prune by a random plan with torch-pruning and with `shrink`; return their largest difference, as `prove_slice` does.

    Raises TraceError when the outputs differ or one of the networks does not run: then no candidate can be trusted.
    """
    kept = random_kept(space, seed)
    module.eval()
    reference = copy.deepcopy(module)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(reference, example_inputs=example, verbose=False)
        for group in space.groups:
            layer = reference.get_submodule(group.name)
            pruner = graph.get_pruner_of_module(layer)
            gone = _outputs(group, set(range(group.channels)) - set(kept[group.name]))
            if gone:
                graph.get_pruning_group(layer, pruner.prune_out_channels, gone).prune(record_history=False)
        with torch.no_grad():
            expected = reference.eval()(example)
            found = shrink(module, space, kept).eval()(example)
    except Exception as problem:
        raise TraceError(f"a narrowed network does not run: {one_line(problem)}; it cannot be compressed safely") from None
    difference = largest_difference(expected.numpy(), found.numpy())
    if not difference <= TOLERANCE:
        raise TraceError(
            f"two ways of narrowing this network disagree by {100 * difference:.3g} % of the largest output; "
            "it cannot be compressed safely"
        )
    return difference


def random_kept(space: PruneSpace, seed: int) -> Kept:
    """Return a random choice of channels in every group. The number of channels is also random, and at least one."""
    generator = np.random.default_rng(seed)
    return {
        group.name: tuple(sorted(generator.permutation(group.channels)[: generator.integers(1, group.channels + 1)].tolist()))
        for group in space.groups
    }


def _outputs(group: Group, channels: set[int]) -> list[int]:
    """The output indices of the group's named module that belong to `channels`."""
    return sorted(channel + part * group.channels for channel in channels for part in range(group.bundle))
