"""Bounded cache: images are kept in memory as they are read, up to a number of bytes."""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from pipeline.core.batch import Inputs
from pipeline.data.loader import in_worker
from pipeline.data.sendable import why_not_sendable

__all__ = ["BoundedCache"]


class BoundedCache:
    """A `Fetch` that reads each image once, as long as it has room for it.

    What was kept stays, because the same images are read again in the same order: replacing the oldest ones would then find none
    of them.

    >>> import torch
    >>> asked = []
    >>> def read(places):
    ...     asked.extend(places)
    ...     return torch.tensor(places, dtype=torch.uint8)[:, None]
    >>> fetch = BoundedCache(read, limit_bytes=2)
    >>> for _ in range(2):
    ...     images = fetch(torch.tensor([3, 5, 7]))
    >>> images.flatten().tolist(), asked
    ([3, 5, 7], [3, 5, 7, 7])
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], Tensor],
        limit_bytes: int,
        keeps: Callable[[int], bool] = lambda index: True,
        user_data: object = None,
    ) -> None:
        """`read` returns the images at some places, (N, C, H, W). `keeps`: which of them may be kept. `user_data`: an object of
        the user that `read` uses.
        """
        self._read, self._keeps, self._room, self._user_data = read, keeps, limit_bytes, user_data
        self._kept: dict[int, Tensor] = {}

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the images at `indices`, (N, C, H, W)."""
        wanted: list[int] = indices.tolist()
        missing = list(dict.fromkeys(index for index in wanted if index not in self._kept))
        if not self._kept and len(missing) == len(wanted):
            read = self._read(missing)
            self._keep(missing, read)
            return read
        fresh = dict(zip(missing, self._read(missing), strict=True)) if missing else {}
        images = torch.stack([self._kept[index] if index in self._kept else fresh[index] for index in wanted])
        self._keep(list(fresh), list(fresh.values()))
        return images

    def holds(self, indices: Tensor) -> bool:
        """See `pipeline.data.loader.Readable`."""
        return all(index in self._kept for index in indices.tolist())

    def keep(self, indices: Tensor, inputs: Inputs) -> None:
        """See `pipeline.data.loader.Readable`."""
        places: list[int] = indices.tolist()
        new = [number for number, place in enumerate(places) if place not in self._kept]
        if new and self._room > 0 and isinstance(inputs, Tensor):
            self._keep([places[number] for number in new], [inputs[number] for number in new])

    def refusal(self) -> str | None:
        """See `pipeline.data.loader.Readable`."""
        return self._refusal

    @cached_property
    def _refusal(self) -> str | None:
        return why_not_sendable(self._user_data)

    def _keep(self, places: Sequence[int], images: Sequence[Tensor] | Tensor) -> None:
        if in_worker():
            return  # each worker would keep its own
        for place, image in zip(places, images, strict=True):
            size = image.numel() * image.element_size()
            if size > self._room:
                return
            if self._keeps(place):
                self._kept[place] = image.clone()  # a view would keep its whole batch
                self._room -= size
