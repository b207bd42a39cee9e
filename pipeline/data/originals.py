"""Originals: images as they are before they are resized. A random resized crop is a part of these."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from pipeline.core.batch import Inputs
from pipeline.data.sendable import why_not_sendable

__all__ = ["Originals"]


@dataclass(frozen=True)
class Originals:
    """The original images of a source. They are `Readable` by workers, and never kept in memory."""

    read: Callable[[Sequence[int]], Iterator[Image.Image]]
    """Yields the images at some places."""
    user_data: object = None
    """An object of the user that `read` uses."""

    def joined(self, count: int, other: "Originals | None") -> "Originals | None":
        """Return these `count` images followed by those of `other`. None if `other` is."""
        if other is None:
            return None
        theirs_read = other.read

        def read(places: Sequence[int]) -> Iterator[Image.Image]:
            ours = self.read([place for place in places if place < count])
            theirs = theirs_read([place - count for place in places if place >= count])
            return (next(ours if place < count else theirs) for place in places)

        return Originals(read, (self.user_data, other.user_data))

    def holds(self, indices: Tensor) -> bool:
        """See `pipeline.data.loader.Readable`."""
        return False

    def keep(self, indices: Tensor, inputs: Inputs) -> None:
        """See `pipeline.data.loader.Readable`."""

    def refusal(self) -> str | None:
        """See `pipeline.data.loader.Readable`."""
        return why_not_sendable(self.user_data)
