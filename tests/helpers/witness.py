"""A second witness: torch-pruning, which finds coupled channels by tracing the network through autograd."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch_pruning
from torch import Tensor, nn

from pipeline.core.plan import Group, Kept, PruneSpace, Slot, layer_of
from pipeline.graph.export import export_trainable
from pipeline.graph.labels.space import label_graph, name_nodes
from pipeline.graph.match_weights import match_weights
from pipeline.graph.shrink import CONVS, NORMS
from pipeline.graph.to_torch import TorchTensor

__all__ = ["Verdict", "pruned_by_torch_pruning", "second_opinion"]


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

Part = tuple[str, str, Slot]
"""(layer, "out" or "in", the entries of that axis of its weight)."""

LAYERS = (*CONVS, *NORMS, nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.PReLU, nn.MultiheadAttention)
"""Layers with weights that torch-pruning knows."""

Verdict = Literal["agrees", "differs", "cannot trace it", "has other weights"]


def second_opinion(module: nn.Module, example: Tensor) -> Verdict:
    """Whether torch-pruning finds the same channels coupled as this program, for the first and the last channel of each group.

    "has other weights": the exported graph makes channels with weights that the module computes from others, so that the sets have
    no common names.
    """
    model = export_trainable(module, example, 18, 10)
    tensors = match_weights(model, module.state_dict())
    name_nodes(model)
    groups = label_graph(model).space.groups
    if any(_outputs_of(group, parts_of(module, group, tensors)) is None for group in groups):
        return "has other weights"
    try:
        coupled = coupled_by_torch_pruning(module, example)
        same = all(_is_same(group, parts_of(module, group, tensors), coupled) for group in groups)
    except Exception:  # torch-pruning raises whatever its index arithmetic meets
        return "cannot trace it"
    return "agrees" if same else "differs"


def _is_same(group: Group, parts: Sequence[Part], coupled: Callable[[str, int], Coupled]) -> bool:
    outputs = _outputs_of(group, parts)
    return outputs is not None and all(
        coupled_here(parts, channel) == coupled(layer_of(group.name), outputs.entries[outputs.channels.index(channel)])
        for channel in (0, group.channels - 1)
    )


def _outputs_of(group: Group, parts: Sequence[Part]) -> Slot | None:
    return next((slot for name, side, slot in parts if (name, side) == (layer_of(group.name), "out")), None)


def coupled_here(parts: Sequence[Part], channel: int) -> Coupled:
    """What leaves with a channel, according to this program."""
    return frozenset(
        (name, side, entry)
        for name, side, slot in parts
        for entry, number in zip(slot.entries, slot.channels, strict=True)
        if number == channel
    )


def parts_of(module: nn.Module, group: Group, tensors: Mapping[str, TorchTensor]) -> list[Part]:
    """The layers of a group. `tensors` is what `match_weights` found."""
    layers, found = dict(module.named_modules()), []
    for slot in group.slots:
        place = tensors.get(slot.tensor)
        name, _, last = place.name.rpartition(".") if place else ("", "", "")
        layer = layers.get(name)
        if place and last == "weight" and isinstance(layer, LAYERS):
            reads = isinstance(layer, (*CONVS, nn.Linear)) and place.axes[slot.axis] != _outputs(layer)
            found.append((name, "in" if reads else "out", slot))
    return found


def coupled_by_torch_pruning(module: nn.Module, example: Tensor) -> Callable[[str, int], Coupled]:
    """What leaves with an output of a layer, according to torch-pruning. Raises any error where it cannot trace the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    names = {layer: name for name, layer in module.named_modules()}

    def coupled(name: str, entry: int) -> Coupled:
        layer = module.get_submodule(name)
        found = set()
        for dependency, entries in graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, [entry]):
            other = dependency.target.module
            if isinstance(other, LAYERS) and any(value.numel() > 1 for value in other.parameters()):
                side = "out" if graph.is_out_channel_pruning_fn(dependency.handler) else "in"
                found |= {(names[other], side, int(each)) for each in entries}
        return frozenset(found)

    return coupled
