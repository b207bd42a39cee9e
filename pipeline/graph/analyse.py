"""Analyse: find the groups of a network in its exported graph, prove each of them, and pair the graph with a torch module."""

from dataclasses import replace

import onnx
from torch import nn

from pipeline.core.batch import Inputs
from pipeline.core.progress import Progress, no_progress
from pipeline.errors import NothingToPrune, TraceError
from pipeline.graph.blocks import find_blocks
from pipeline.graph.export import export_trainable
from pipeline.graph.gather_steps import label_with_steps
from pipeline.graph.labels.space import name_nodes
from pipeline.graph.match_weights import match_weights
from pipeline.graph.metadata import constants_of, strip_notes
from pipeline.graph.module_names import places_of, with_places
from pipeline.graph.prove import prove_blocks, prove_groups
from pipeline.graph.prunable_network import PrunableNetwork, pair_with_module
from pipeline.graph.restrict import restrict, restrict_blocks
from pipeline.graph.settings import PruningSettings

__all__ = ["analyse"]

OPSET, IR_VERSION = 18, 10
"""Of the graph that is made where the caller has none."""

DEFAULT = PruningSettings()


def analyse(
    module: nn.Module,
    example: Inputs,
    model: onnx.ModelProto | None = None,
    progress: Progress = no_progress,
    settings: PruningSettings = DEFAULT,
) -> PrunableNetwork:
    """Return the network with its prunable groups and blocks, and the layers that are not prunable, each with a reason.

    `example` is one sample as a batch, (1, C, H, W), or a `Batch`. `model` is the trainable graph of `module`; without it, the
    module is exported. Its notes, from which the reasons take the names of modules, are removed, and a Slice of channels in steps
    becomes a Gather. `settings` say how channels leave grouped layers, and which layers may lose some.
    Raises ModelError when a restriction does not fit the network, TraceError when the network cannot be exported or pruned, and
    NothingToPrune when no group can be pruned.
    """
    if model is None:
        model = export_trainable(module, example, OPSET, IR_VERSION)
    tensors = match_weights(model, module.state_dict())
    name_nodes(model)
    progress(0, 0, "finding the channel groups")
    labelled = restrict(label_with_steps(model, settings.grouped), settings.restriction, constants_of(model) or ())
    proven = prove_groups(model, labelled, progress)
    places = places_of(model)
    strip_notes(model)
    labelled = labelled.restricted({group.name for group in proven.groups}, proven.refused)
    if settings.restriction.depth:
        progress(0, 0, "finding the blocks that can be dropped")
        labelled = restrict_blocks(labelled.with_blocks(*find_blocks(model, labelled.space.groups)), settings.restriction)
        labelled = labelled.with_blocks(*prove_blocks(model, labelled))
    progress(0, 0, "comparing pruned networks with their sliced graphs")
    try:
        network = pair_with_module(module, model, labelled, tensors, example) if labelled.space.groups else None
    except TraceError as problem:
        raise TraceError(with_places(str(problem), places)) from None
    if network is None or not network.space.groups:
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in labelled.space.frozen[:3])
        raise NothingToPrune(
            f"no layer of this network can be pruned ({reasons or 'it has no convolution or linear layer'}); "
            "nothing can be done for it here"
        )
    return replace(network, places=places)
