"""A second witness: the network as torch-pruning prunes it."""

import copy
import warnings
from collections.abc import Callable

import torch
import torch_pruning
from torch import Tensor, nn

from pipeline.core.plan import Group, Kept, PruneSpace
from pipeline.graph.shrink import CONVS, NORMS

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


Coupled = frozenset[tuple[str, str, int]]
"""(layer, "out" or "in", entry) of everything that leaves with one channel."""


def coupled_here(module: nn.Module, group: Group, channel: int) -> Coupled:
    """What leaves with a channel of `group`, according to this program. Only layers that torch-pruning knows count."""
    found = set()
    layers = dict(module.named_modules())
    for slot in group.slots:
        name, _, last = slot.tensor.rpartition(".")
        layer = layers.get(name)
        if last == "weight" and isinstance(layer, (*CONVS, *NORMS, nn.Linear, nn.LayerNorm, nn.GroupNorm)):
            side = "in" if isinstance(layer, (*CONVS, nn.Linear)) and slot.axis != _outputs(layer) else "out"
            entries = zip(slot.entries, slot.channels, strict=True)
            found |= {(name, side, entry) for entry, number in entries if number == channel}
    return frozenset(found)


def coupled_by_torch_pruning(module: nn.Module, example: Tensor) -> Callable[[str, int], Coupled]:
    """What leaves with an output of a layer, according to torch-pruning. Raises any error where it cannot trace the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    names = {layer: name for name, layer in module.named_modules()}

    def coupled(name: str, entry: int) -> Coupled:
        layer = module.get_submodule(name)
        group = graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, [entry])
        found = set()
        for dependency, entries in group:
            if dependency.target.module in names:
                side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
                found |= {(names[dependency.target.module], side, int(each)) for each in entries}
        return frozenset(found)

    return coupled
