"""Fine-tune the plan that the search chose, with the dense network as its teacher."""

import safetensors.torch
from torch import nn

from pipeline.core.candidate import Candidate
from pipeline.core.plan import Kept, PruneSpace
from pipeline.stages.initial_weights import InitialWeights
from pipeline.training.finetune import Finetuned
from pipeline.training.teacher import KeptInputs, Teacher

__all__ = ["finetune_chosen", "kept_inputs_of"]


def finetune_chosen(weights: InitialWeights, chosen: Candidate, seed: int) -> Finetuned:
    """Fine-tune the network of `chosen` from its initial weights. Resumes a checkpoint. Raises TrainingDiverged, StorageError."""
    context = weights.context
    builder = context.builder
    teacher = Teacher(builder.module, kept_inputs_of(builder.module, builder.space, builder.kept(chosen.plan)))
    run, callback = context.run, context.callback
    with run.derived(run.checkpoint, safetensors.torch.load, callback.notice):
        tuned = context.task.finetune(weights.of(chosen.plan), teacher, seed, run.checkpoint, callback.progress)
    context.notices.add(*tuned.notices)
    for text in tuned.choices:
        callback.say(text)
        run.record_choice(text)
    return tuned


def kept_inputs_of(module: nn.Module, space: PruneSpace, kept: Kept) -> KeptInputs:
    """Return the input channels that each layer of `module`, the dense network, keeps. Layers that keep all are left out."""
    found = {}
    for name, axes in space.axes.items():
        layer, _, attribute = name.rpartition(".")
        if attribute == "weight" and 1 in axes and not getattr(module.get_submodule(layer), "transposed", False):
            size = module.get_submodule(layer).get_parameter(attribute).shape[1]
            found[layer] = tuple(space.remaining(name, 1, size, kept).tolist())
    return found
