"""Joined fetch: two sources of images as one. The images of the second follow those of the first."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.batch import Inputs, joined
from pipeline.data.loader import Readable

__all__ = ["JoinedFetch"]

Fetch = Callable[[Tensor], Inputs]


@dataclass(frozen=True)
class JoinedFetch:
    """A `Fetch` of the images of `first` and then of `second`. It is `Readable` by workers."""

    first: Fetch
    count: int
    """Number of images of `first`."""
    second: Fetch
    convert: Callable[[Inputs], Inputs] | None = None
    """What the images of `second` go through, if those of `first` are ready for the network."""

    def __call__(self, chosen: Tensor) -> Inputs:
        """Return the images at `chosen`."""
        ours = chosen < self.count
        parts = [self.first(chosen[ours])] if ours.any() else []
        if not ours.all():
            pixels = self.second(chosen[~ours] - self.count)
            parts.append(self.convert(pixels) if self.convert else pixels)
        order = torch.cat([ours.nonzero(), (~ours).nonzero()]).flatten()
        return joined(parts)[order.argsort()]

    def holds(self, indices: Tensor) -> bool:
        """See `Readable`."""
        return all(source.holds(part) for source, part, _ in self._parts(indices) if isinstance(source, Readable))

    def keep(self, indices: Tensor, inputs: Inputs) -> None:
        """See `Readable`."""
        for number, (source, part, places) in enumerate(self._parts(indices)):
            if isinstance(source, Readable) and (number == 0 or self.convert is None):
                source.keep(part, inputs[places])

    def refusal(self) -> str | None:
        """See `Readable`."""
        sources: tuple[object, ...] = self.first, self.second
        found = (source.refusal() for source in sources if isinstance(source, Readable))
        return next((reason for reason in found if reason is not None), None)

    def _parts(self, indices: Tensor) -> list[tuple[object, Tensor, Tensor]]:
        """Each source, the indices in it, and where these are in `indices`."""
        ours = indices < self.count
        return [(self.first, indices[ours], ours), (self.second, indices[~ours] - self.count, ~ours)]
