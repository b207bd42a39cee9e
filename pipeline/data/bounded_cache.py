"""Bounded cache: images are kept in memory as they are read, up to a number of bytes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
        self, read: Callable[[Sequence[int]], Tensor], limit_bytes: int, keeps: Callable[[int], bool] = lambda index: True
    ) -> None:
        """`read` returns the images at some places, (N, C, H, W). `keeps`: which of them may be kept."""
        self._read, self._keeps, self._room = read, keeps, limit_bytes
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

    def _keep(self, places: Sequence[int], images: Sequence[Tensor] | Tensor) -> None:
        for place, image in zip(places, images, strict=True):
            size = image.numel() * image.element_size()
            if size > self._room:
                return
            if self._keeps(place):
                self._kept[place] = image.clone()  # a view would keep its whole batch
                self._room -= size
