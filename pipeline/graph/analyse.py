"""Analyse: find the prunable groups of a torch network, and verify each of them before it enters the search space."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.core.plan import Group, Kept, NotPrunable, PruneSpace, Slot
from pipeline.errors import NothingToPrune, TraceError, one_line
from pipeline.graph.couplings import Coupling, trace_couplings
from pipeline.graph.shrink import CONVS, NORMS, all_channels, shrink

__all__ = ["analyse", "mask"]

TOLERANCE = 1e-9
"""Largest difference that counts as rounding, in double precision, as a share of the largest output. Single precision could
hide a wrong coupling: one was seen that changed the output by only 1e-4.
"""


class _NotPrunable(Exception):
    """A group cannot be pruned; the message gives the reason."""


def analyse(module: nn.Module, example: Tensor) -> PruneSpace:
    """Return the groups of `module` that can be pruned, and the layers that cannot, each with a reason.

    `example` is one batch of inputs, (N, C, H, W). Every group is tested twice: with half of its channels removed, and
    with one removed. The pruned network must run, keep the shape of its output, and give the same output as the dense
    network with the removed channels silenced. The test does not depend on how the groups were found. So a wrong
    coupling leaves a layer unpruned, and never yields a wrong network.

    Raises TraceError when the network cannot be traced or copied, and NothingToPrune when no group can be pruned.
    """
    groups: list[Group] = []
    frozen: list[NotPrunable] = []
    modules = dict(module.named_modules())
    for coupling in trace_couplings(module, example):
        try:
            groups.append(_group(coupling, modules))
        except _NotPrunable as reason:
            frozen.append(NotPrunable(coupling.root, str(reason)))
    proven, refused = _try(module, example, groups)
    frozen += refused
    covered = {slot.tensor.rpartition(".")[0] for group in proven for slot in group.slots if slot.axis == 0}
    listed = {layer.name for layer in frozen}
    for name, layer in modules.items():
        if isinstance(layer, (*CONVS, nn.Linear)) and name not in covered and name not in listed:
            frozen.append(NotPrunable(name, "its outputs are tied to a layer that keeps its width"))
    if not proven:
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in frozen[:3]) or "it has no convolution or linear layer"
        raise NothingToPrune(f"no layer of this network can be narrowed ({reasons}); nothing can be done for it here")
    return PruneSpace(tuple(proven), tuple(frozen))


def mask(module: nn.Module, space: PruneSpace, kept: Kept) -> nn.Module:
    """Return a copy of `module` of the same width that ignores all channels except the `kept` ones.

    Its output equals that of the pruned network, unless the network has layer normalisation, which mixes channels.
    """
    whole = all_channels(space)
    silenced = shrink(module, space, whole)
    layers = dict(silenced.named_modules())
    with torch.no_grad():
        for group in space.groups:
            gone = set(whole[group.name]) - set(kept[group.name])
            for slot in group.slots:
                name, _, kind = slot.tensor.rpartition(".")
                if kind == "weight" and slot.axis == _input_axis(layers.get(name)):
                    entries = [e for e, channel in zip(slot.entries, slot.channels, strict=True) if channel in gone]
                    layers[name].get_parameter("weight").index_fill_(slot.axis, torch.tensor(entries, dtype=torch.long), 0.0)
    return silenced


def _input_axis(layer: nn.Module | None) -> int | None:
    if isinstance(layer, CONVS):
        return 0 if layer.transposed else 1
    return 1 if isinstance(layer, nn.Linear) else None


def _group(coupling: Coupling, modules: dict[str, nn.Module]) -> Group:
    bundle = _bundle(coupling, modules)
    slots: list[Slot] = []
    consumed = False
    for name, role, entries, roots in coupling.members:
        layer = modules.get(name)
        consumed |= role == "in" and isinstance(layer, (*CONVS, nn.Linear))
        for tensor, axis in _tensors(name, layer, role):
            shared = role == "in" and isinstance(layer, CONVS) and layer.groups > 1 and not _depthwise(layer)
            size = layer.weight.shape[1] if shared else len(entries)  # type: ignore[union-attr,index]
            channels = tuple(root % (coupling.channels // bundle) for root in roots)
            slots.append(Slot(tensor, axis, entries[:size], channels[:size]))
    if not consumed:
        raise _NotPrunable("its channels are the network's output")
    if coupling.channels // bundle < 2:
        raise _NotPrunable("it has a single channel to give")
    return Group(coupling.root, coupling.channels // bundle, tuple(_merged(slots)), bundle)


def _bundle(coupling: Coupling, modules: dict[str, nn.Module]) -> int:
    """The number of channels to remove at once. A grouped convolution must lose the same number of channels in each group."""
    counts = set()
    for name, _role, entries, roots in coupling.members:
        layer = modules.get(name)
        if isinstance(layer, CONVS) and layer.groups > 1 and not _depthwise(layer):
            if layer.transposed or entries != roots or len(entries) != coupling.channels:
                raise _NotPrunable("a grouped convolution takes only part of its channels")
            counts.add(layer.groups)
    if len(counts) > 1:
        raise _NotPrunable("it feeds grouped convolutions with different numbers of groups")
    return counts.pop() if counts else 1


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, CONVS) and 1 < layer.groups == layer.in_channels == layer.out_channels


def _tensors(name: str, layer: nn.Module | None, role: str) -> list[tuple[str, int]]:
    """The (tensor, axis) pairs of a layer that lose entries when the layer has the given role in a group."""
    if role.startswith("parameter:"):
        return [(name, int(role.partition(":")[2]))]
    biased = [(f"{name}.bias", 0)] if getattr(layer, "bias", None) is not None else []
    if not isinstance(getattr(layer, "weight", None), (nn.Parameter, type(None))):
        raise _NotPrunable(f"the weights of '{name}' are computed from other tensors")
    if isinstance(layer, CONVS):
        if layer.transposed:
            return [(f"{name}.weight", 1), *biased] if role == "out" else [(f"{name}.weight", 0)]
        return [(f"{name}.weight", 0), *biased] if role == "out" or _depthwise(layer) else [(f"{name}.weight", 1)]
    if isinstance(layer, nn.Linear):
        return [(f"{name}.weight", 0), *biased] if role == "out" else [(f"{name}.weight", 1)]
    if isinstance(layer, NORMS):
        kinds = ("weight", "bias", "running_mean", "running_var")
        return [(f"{name}.{kind}", 0) for kind in kinds if getattr(layer, kind, None) is not None]
    if isinstance(layer, nn.LayerNorm):
        if len(layer.normalized_shape) != 1 or layer.weight is None:
            raise _NotPrunable("its layer normalisation spans more than the channels, or has no weights")
        return [(f"{name}.weight", 0), *biased]
    if isinstance(layer, nn.PReLU):
        return [(f"{name}.weight", 0)] if layer.num_parameters > 1 else []
    raise _NotPrunable(f"it passes through '{name}', and {type(layer).__name__} cannot be narrowed")


def _merged(slots: Iterable[Slot]) -> list[Slot]:
    """Remove duplicate slots. A layer that runs twice is listed twice, and both lists must agree."""
    seen: dict[tuple[str, int, tuple[int, ...]], Slot] = {}
    for slot in slots:
        before = seen.setdefault((slot.tensor, slot.axis, slot.entries), slot)
        if before.channels != slot.channels:
            raise _NotPrunable("one of its layers is used twice with different channels")
    return list(seen.values())


def _try(module: nn.Module, example: Tensor, groups: list[Group]) -> tuple[list[Group], list[NotPrunable]]:
    """Split `groups` into those that pass the test and those that fail. They are tested one by one only if all together fail."""
    if not groups or _trial(module, example, groups) is None:
        return groups, []
    proven, refused = [], []
    for group in groups:
        reason = _trial(module, example, [group])
        if reason is None:
            proven.append(group)
        else:
            refused.append(NotPrunable(group.name, reason))
    while proven and (reason := _trial(module, example, proven)) is not None:
        # each group passes alone, but not all together: drop the last, because early layers cost the most
        refused.append(NotPrunable(proven.pop().name, f"not together with the groups before it: {reason}"))
    return proven, refused


def _enlivened(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy in double precision with random weights, so that almost every channel is active.

    Couplings do not depend on weights, and the silent channels of a trained network could hide a wrong coupling.
    """
    try:
        lively = copy.deepcopy(module).double().eval()
    except Exception as problem:  # for example torch.nn.utils.weight_norm, or an attribute that is a lock
        raise TraceError(f"the network cannot be copied: {one_line(problem)}; copy.deepcopy must accept it") from None
    with torch.no_grad():
        for layer in lively.modules():
            if isinstance(layer, (*CONVS, nn.Linear)):
                inputs = layer.weight[0].numel()
                layer.weight.copy_(torch.randn(layer.weight.shape, dtype=torch.float64, generator=generator) / math.sqrt(inputs))
            if isinstance(layer, NORMS):
                for name, low, high in (
                    ("weight", 0.5, 1.5),
                    ("bias", 0.0, 1.0),
                    ("running_mean", -0.1, 0.1),
                    ("running_var", 0.5, 1.5),
                ):
                    tensor = getattr(layer, name)
                    if tensor is not None:
                        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, dtype=torch.float64, generator=generator))
    return lively


def _trial(module: nn.Module, example: Tensor, groups: list[Group]) -> str | None:
    """The reason why channels of `groups` cannot be removed, or None when they can."""
    space = PruneSpace(tuple(groups))
    generator = torch.Generator().manual_seed(0)
    module = _enlivened(module, generator)
    example = torch.randn(example.shape, dtype=torch.float64, generator=generator)
    # half may pass by chance, by removing equally many channels from each part of a split; so one is tested as well
    for gone in ({group.name: group.channels // 2 for group in groups}, {group.name: 1 for group in groups}):
        kept = {
            group.name: tuple(sorted(torch.randperm(group.channels, generator=generator)[gone[group.name] :].tolist()))
            for group in groups
        }
        with torch.no_grad():
            reason = _misfit(module, space, kept, example)
        if reason:
            return reason
    return None


def _misfit(module: nn.Module, space: PruneSpace, kept: Kept, example: Tensor) -> str | None:
    """The reason why `module` pruned to `kept` is wrong, or None when it is right."""
    try:
        small = shrink(module, space, kept).eval()(example)
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as problem:
        return f"the network does not run without it ({one_line(problem, 120)})"
    whole = module(example)
    if small.shape != whole.shape:
        return "its channels are the network's output"
    if any(isinstance(layer, nn.LayerNorm) for layer in module.modules()):
        return None  # layer normalisation mixes channels, so silencing one changes the others
    silenced = mask(module, space, kept).eval()(example)
    scale = max(float(silenced.abs().max()), 1e-6)
    if not torch.isfinite(small).all() or float((small - silenced).abs().max()) > TOLERANCE * scale:
        return "removing its channels changes more than they carry"
    return None
