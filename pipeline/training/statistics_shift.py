"""Statistics shift: how the BatchNorm statistics of the dense network on the pictures at hand differ from its own.

Statistics that are estimated from few pictures are wrong, even for the dense network: the pictures are few, and not those of its
training. But the dense network's own statistics are known. So its difference is measured on the same pictures, and the estimates
of a pruned network are corrected by it, as a control variate. Without a removed channel, the statistics are exactly its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.plan import Kept, PruneSpace

__all__ = ["Shifts", "StatisticsShift", "difference_of", "kept_shifts", "norms_of", "set_shifts", "shift_statistics", "shifts_of"]

_ATTRIBUTE = "_compress_statistics_shifts"
LEAST_VARIANCE = 1e-12
MOST = 4.0
"""Largest factor of a variance; its inverse is the smallest. A channel whose variance differs by more is hardly active in the
pictures, so they say little about it.
"""


@dataclass(frozen=True)
class StatisticsShift:
    """The shift of one BatchNorm layer."""

    mean: Tensor
    """(channels,): own mean minus the estimate, in standard deviations of the estimate."""
    variance: Tensor
    """(channels,): own variance as a multiple of the estimate."""

    def corrected(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the corrected mean and variance of estimates, (channels,) each."""
        return mean + self.mean * (variance + LEAST_VARIANCE).sqrt(), variance * self.variance


Shifts = Mapping[str, StatisticsShift]
"""Name of a BatchNorm layer -> its shift."""


def norms_of(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers of `module` that have running statistics, by name."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.track_running_stats}


def difference_of(own: nn.Module, estimated: nn.Module) -> Shifts:
    """Return the shifts of `own`, the dense network. `estimated` is a copy whose statistics come from the pictures at hand."""
    found, others = {}, norms_of(estimated)
    for name, norm in norms_of(own).items():
        mean, variance = others[name].running_mean, others[name].running_var
        if norm.running_mean is None or norm.running_var is None or mean is None or variance is None:
            continue
        deviation = (variance + LEAST_VARIANCE).sqrt()
        factor = (norm.running_var / (variance + LEAST_VARIANCE)).clamp(1 / MOST, MOST)
        found[name] = StatisticsShift((norm.running_mean - mean) / deviation, factor)
    return found


def kept_shifts(shifts: Shifts, space: PruneSpace, kept: Kept) -> Shifts:
    """Return the shifts of the channels that a pruned network kept."""

    def of(name: str, shift: StatisticsShift) -> StatisticsShift:
        left = torch.from_numpy(space.remaining(f"{name}.running_mean", 0, len(shift.mean), kept))
        return StatisticsShift(shift.mean[left], shift.variance[left])

    return {name: of(name, shift) for name, shift in shifts.items()}


def set_shifts(module: nn.Module, shifts: Shifts) -> None:
    """Store in `module` the shifts by which its estimated statistics are corrected. Copies of the module keep them."""
    setattr(module, _ATTRIBUTE, dict(shifts))


def shifts_of(module: nn.Module) -> Shifts:
    """Return the shifts that are stored in `module`; none if there are none."""
    found: Shifts = getattr(module, _ATTRIBUTE, {})
    return found


def shift_statistics(module: nn.Module) -> None:
    """Correct the estimated statistics of `module` in place, by the shifts that are stored in it."""
    norms = norms_of(module)
    for name, shift in shifts_of(module).items():
        norm = norms.get(name)  # None in a dropped block
        if norm is None or norm.running_mean is None or norm.running_var is None:
            continue
        placed = StatisticsShift(*(tensor.to(norm.running_mean.device) for tensor in (shift.mean, shift.variance)))
        mean, variance = placed.corrected(norm.running_mean, norm.running_var)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
