"""Fine-tune the plan that the search chose."""

import safetensors.torch
from torch import nn

from pipeline.core.candidate import Candidate
from pipeline.stages.initial_weights import InitialWeights
from pipeline.training.finetune import Finetuned

__all__ = ["finetune_chosen"]


def finetune_chosen(weights: InitialWeights, chosen: Candidate, teacher: nn.Module, seed: int) -> Finetuned:
    """The network of `chosen`, fine-tuned from its initial weights with `teacher`, the dense network. Resumes a checkpoint.

    Raises TrainingDiverged, StorageError.
    """
    context = weights.context
    run, callback = context.run, context.callback
    with run.derived(run.checkpoint, safetensors.torch.load, callback.notice):
        tuned = context.task.finetune(weights.of(chosen.plan), teacher, seed, run.checkpoint, callback.progress)
    context.notices.add(*tuned.notices)
    return tuned
