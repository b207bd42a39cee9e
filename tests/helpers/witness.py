"""A second witness: the network as torch-pruning prunes it."""

import copy
import warnings

import torch
import torch_pruning
from torch import Tensor, nn

from pipeline.core.plan import Kept, PruneSpace

__all__ = ["pruned_by_torch_pruning"]


def pruned_by_torch_pruning(module: nn.Module, space: PruneSpace, kept: Kept, example: Tensor) -> nn.Module:
    """A copy of `module` from which torch-pruning has removed all channels but the `kept` ones."""
    reference = copy.deepcopy(module).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(reference, example_inputs=example, verbose=False)
    for group in space.groups:
        layer = reference.get_submodule(group.name)
        outputs = next(slot for slot in group.slots if slot.tensor == f"{group.name}.weight" and slot.axis == _outputs(layer))
        pairs = zip(outputs.entries, outputs.channels, strict=True)
        gone = sorted(entry for entry, channel in pairs if channel not in kept[group.name])
        if gone:
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, gone).prune(record_history=False)
    return reference


def _outputs(layer: nn.Module) -> int:
    return 1 if getattr(layer, "transposed", False) else 0


def answer(module: nn.Module, example: Tensor) -> Tensor:
    """The output of `module` in evaluation mode."""
    with torch.no_grad():
        found: Tensor = module.eval()(example)
    return found
