"""Features: what a network computes inside, at places that a network and its pruned copy share.

A place is the input of a layer, so it is found in the same way in a user's own module and in a rebuilt one:

- the last features that have more than one pixel, before the network pools or flattens them for its last layers;
- for each higher resolution, the input of the last layer that reads it: the end of a stage of blocks.

The pruned network has fewer channels at a place. The dense network's features are compared on the channels that were kept.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pipeline.core.batch import Inputs, Outputs
from pipeline.training.teacher import Teacher

__all__ = ["Place", "difference", "find_places", "parameters_before", "run_recorded", "run_until"]

_READERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Place:
    """A place in a network whose features are compared."""

    layer: str
    """Name of the layer that reads the features."""
    pooled: bool
    """Whether the features are pooled before the layer reads them. The features before pooling are meant."""
    kept: tuple[int, ...] | None
    """Channels of the dense network that the pruned one kept. None: all."""


@dataclass(eq=False)
class _Call:
    layer: str
    entries: Tensor
    pooled: Tensor | None
    """The last features with more than one pixel that were pooled or flattened before this call."""

    def features(self, pooled: bool) -> Tensor | None:
        return self.pooled if pooled else self.entries


class _Pooling(TorchFunctionMode):
    """Remembers the last features of several pixels from which a function made one value per channel, or a flat vector."""

    last: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        features = args[0] if args else None
        if isinstance(result, Tensor) and isinstance(features, Tensor) and _pixels(features) > 1 and _pixels(result) == 1:
            self.last = features
        return result


class _Reached(Exception):
    """The place was reached; the rest of the network need not run."""


def _pixels(tensor: Tensor) -> int:
    """Number of positions of features (N, C, ...). 1 for (N, C)."""
    return math.prod(tensor.shape[2:])


def find_places(student: nn.Module, teacher: Teacher, pictures: Inputs) -> tuple[Place, ...]:
    """Return the places in the order in which the network runs. The last one is before the last layers.

    `pictures` are two or more inputs, (N, C, H, W). A place is left out if the two networks do not agree about it, for example
    because it does not hold one part for each picture. There may be none.
    """
    calls, others = _calls(teacher.module, pictures), {call.layer: call for call in _calls(student, pictures)}
    found: dict[str, Place] = {}
    for call, pooled in _candidates(calls):
        kept = tuple(teacher.kept_inputs[call.layer]) if call.layer in teacher.kept_inputs else None
        other = others.get(call.layer)
        if other is not None and _agree(call.features(pooled), other.features(pooled), kept, len(pictures)):
            found.setdefault(call.layer, Place(call.layer, pooled, kept))
    return tuple(found.values())


def run_recorded(module: nn.Module, places: Sequence[Place], pixels: Inputs) -> tuple[Outputs, list[Tensor]]:
    """Run `module` on `pixels`. Returns its outputs, and its features at each of `places`, (N, C, ...)."""
    calls: list[_Call] = []
    with _recorded(module, [place.layer for place in places], calls):
        outputs: Outputs = module(pixels)
    seen = {call.layer: call for call in calls}
    return outputs, [_known(seen[place.layer].features(place.pooled)) for place in places]


def run_until(module: nn.Module, place: Place, pixels: Inputs) -> Tensor:
    """Run `module` on `pixels` up to `place`. Returns the features there, (N, C, ...)."""
    calls: list[_Call] = []
    try:
        with _recorded(module, [place.layer], calls, stop=True):
            module(pixels)
    except _Reached:
        pass
    return _known(calls[-1].features(place.pooled))


def difference(place: Place, pruned: Tensor, dense: Tensor) -> Tensor:
    """Return the mean squared difference of the features on the kept channels, as a share of the dense features' variance."""
    if place.kept is not None:
        dense = dense[:, list(place.kept)]
    dense = dense.float()
    return F.mse_loss(pruned.float(), dense) / dense.var().clamp(min=LEAST_VARIANCE)


def parameters_before(module: nn.Module, places: Sequence[Place], pictures: Inputs) -> tuple[tuple[nn.Parameter, ...], ...]:
    """Return the parameters that `module` uses before each of `places` and after the one before, and last those after all."""
    known: set[int] = set()
    found = []
    for place in (*places, None):
        used = list(module.parameters()) if place is None else _used_until(module, place, pictures)
        found.append(tuple(parameter for parameter in used if id(parameter) not in known and parameter.requires_grad))
        known.update(id(parameter) for parameter in used)
    return tuple(found)


def _used_until(module: nn.Module, place: Place, pictures: Inputs) -> list[nn.Parameter]:
    """The parameters with a gradient at `place`."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        features = run_until(module.eval(), place, pictures)
        gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    return [parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None]


def _candidates(calls: list[_Call]) -> Iterator[tuple[_Call, bool]]:
    """Places in order, as a call and whether the features before pooling are meant. Of one call, the better place comes first."""
    # the last layers read pooled features; so does squeeze-and-excitation, but convolutions follow it
    last = max((number for number, call in enumerate(calls) if _pixels(call.entries) > 1), default=-1)
    head = next((call for call in calls[last + 1 :] if call.pooled is not None), calls[-1] if calls else None)
    if head is None:
        return
    lowest = _pixels(head.pooled) if head.pooled is not None else 1
    ends = {_pixels(call.entries): number for number, call in enumerate(calls[: calls.index(head)])}
    for number in sorted(number for pixels, number in ends.items() if pixels > lowest and number):  # the first reads the images
        yield calls[number], False
    if head.pooled is not None:
        yield head, True
    yield head, False  # a network that flattens its features has other channels behind than before


def _agree(dense: Tensor | None, pruned: Tensor | None, kept: tuple[int, ...] | None, pictures: int) -> bool:
    if dense is None or pruned is None or not len(dense) == len(pruned) == pictures or dense.dim() < 2:
        return False
    channels = dense.shape[1] if kept is None else len(kept)
    return pruned.shape[1] == channels and pruned.shape[2:] == dense.shape[2:] and max(kept or (0,)) < dense.shape[1]


def _calls(module: nn.Module, pictures: Inputs) -> list[_Call]:
    """The calls of all layers that mix all channels, in order."""
    calls: list[_Call] = []
    names = [name for name, layer in module.named_modules() if isinstance(layer, _READERS) and getattr(layer, "groups", 1) == 1]
    with torch.no_grad(), _recorded(module.eval(), names, calls):
        module(pictures)
    return calls


@contextmanager
def _recorded(module: nn.Module, names: Sequence[str], calls: list[_Call], stop: bool = False) -> Iterator[None]:
    """Record the calls of the layers `names` inside the block. With `stop`, the first one raises _Reached."""
    pooling = _Pooling()

    def recorder(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(_: nn.Module, entries: tuple[Tensor, ...]) -> None:
            calls.append(_Call(name, entries[0], pooling.last))
            if stop:
                raise _Reached

        return record

    handles = [module.get_submodule(name).register_forward_pre_hook(recorder(name)) for name in names]
    try:
        with pooling:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _known(features: Tensor | None) -> Tensor:
    if features is None:
        raise RuntimeError("a place of the network was not reached")
    return features
