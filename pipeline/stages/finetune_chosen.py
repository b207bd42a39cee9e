"""Fine-tune the plan that the search chose."""

import safetensors.torch
from torch import nn

from pipeline.core.candidate import Candidate
from pipeline.stages.initial_weights import InitialWeights
from pipeline.training.finetune import Finetuned

__all__ = ["finetune_chosen"]


def finetune_chosen(weights: InitialWeights, chosen: Candidate, teacher: nn.Module, seed: int) -> Finetuned:
    """Fine-tune the network of `chosen` from its initial weights. Resumes a checkpoint.

    `teacher` is the dense network. Raises TrainingDiverged, StorageError.
    """
    context = weights.context
    run, callback = context.run, context.callback
    with run.derived(run.checkpoint, safetensors.torch.load, callback.notice):
        tuned = context.task.finetune(weights.of(chosen.plan), teacher, seed, run.checkpoint, callback.progress)
    context.notices.add(*tuned.notices)
    return tuned
