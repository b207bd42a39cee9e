"""Methods: how a pruned network is recovered from few pictures. The dense network gives all answers, so no labels are needed.

    distil    the outputs                                          distil.py
    mimic     the features before the last layers                  mimic.py
    blocks    the features at the ends of blocks, one by one       blocks.py

Each method is one file, and names its source. With `auto`, the first of AUTO continues as long as its rounds pay, and then the
other one has a turn.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pipeline.training.recover.blocks import blocks
from pipeline.training.recover.distil import distil
from pipeline.training.recover.mimic import mimic
from pipeline.training.recover.objective import Method
from pipeline.training.settings import FinetuneSettings

__all__ = ["AUTO", "FEW", "METHODS", "MethodName", "methods_of"]

MethodName = Literal["distil", "mimic", "blocks"]
METHODS: Mapping[MethodName, Method] = MappingProxyType({"distil": distil, "mimic": mimic, "blocks": blocks})
AUTO: tuple[MethodName, ...] = ("mimic", "distil")
"""The methods of `auto`, the first one first; see docs/decisions/0048-statistics-that-fit.md."""
FEW = 1000
"""With fewer training pictures, labelled or not, `auto` recovers the network; with more, it trains with labels, in epochs."""


def methods_of(settings: FinetuneSettings, pictures: int) -> tuple[MethodName, ...]:
    """Return the methods to choose from, for this number of training pictures. None: training with labels, in epochs.

    Example: `methods_of(FinetuneSettings(), 50_000)` is ().
    """
    if settings.recover == "none" or settings.epochs == 0:
        return ()
    if settings.recover != "auto":
        return (settings.recover,)
    return AUTO if pictures < FEW else ()
