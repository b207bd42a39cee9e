"""Optimizers: the optimizer of fine-tuning, which parameters it decays, and the average of the weights."""

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.training.settings import FinetuneSettings

__all__ = ["average_of", "optimizer_of", "parameter_groups"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def optimizer_of(module: nn.Module, settings: FinetuneSettings) -> Optimizer:
    """Return the optimizer of `settings` for the parameters of `module`. Its learning rate is set at every step."""
    groups = parameter_groups(module, settings)
    if settings.optimizer == "adamw":
        return AdamW(groups, lr=0.0)
    return SGD(groups, lr=0.0, momentum=settings.momentum, nesterov=settings.momentum > 0)


def parameter_groups(module: nn.Module, settings: FinetuneSettings) -> list[dict[str, object]]:
    """Return the parameters of `module` with their weight decays.

    If only weights decay, then not the parameters of normalisation layers, and no biases or other vectors (He et al., arXiv
    1812.01187, section 3.1).

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> groups = parameter_groups(net, FinetuneSettings(optimizer="adamw", weight_decay=0.05))
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.05), (3, 0.0)]
    """
    parameters = list(module.parameters())
    if settings.decays_all:
        return [{"params": parameters, "weight_decay": settings.weight_decay}]
    norms = {id(each) for layer in module.modules() if isinstance(layer, NORMS) for each in layer.parameters(recurse=False)}
    decayed = {id(each) for each in parameters if each.dim() > 1 and id(each) not in norms}
    return [
        {"params": [each for each in parameters if id(each) in decayed], "weight_decay": settings.weight_decay},
        {"params": [each for each in parameters if id(each) not in decayed], "weight_decay": 0.0},
    ]


def average_of(module: nn.Module, settings: FinetuneSettings) -> AveragedModel | None:
    """Return an exponential moving average of the weights of `module`, or None if `settings` ask for none.

    Statistics of BatchNorm are not averaged: they are estimated again before each validation.
    """
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
