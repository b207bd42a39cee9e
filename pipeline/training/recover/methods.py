"""Methods: how a pruned network is recovered from few pictures. The dense network gives all answers, so no labels are needed.

    distil    the outputs                                          distil.py
    mimic     the features before the last layers                  mimic.py
    blocks    the features at the ends of blocks, one by one       blocks.py

Each method is one file, and names its source. `auto` chooses by the number of pictures.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pipeline.training.recover.blocks import blocks
from pipeline.training.recover.distil import distil
from pipeline.training.recover.mimic import mimic
from pipeline.training.recover.objective import Method
from pipeline.training.settings import FinetuneSettings, Recovery

__all__ = ["FEW", "METHODS", "method_name"]

METHODS: Mapping[str, Method] = MappingProxyType({"distil": distil, "mimic": mimic, "blocks": blocks})
AUTO: Recovery = "mimic"
"""What `auto` does. It was the best method in the benchmark; see docs/decisions/0026-few-pictures.md."""
FEW = 1000
"""With fewer training pictures, labelled or not, `auto` recovers the network; with more, it trains with labels, in epochs."""


def method_name(settings: FinetuneSettings, pictures: int) -> Recovery | None:
    """Return the name of the method for this number of training pictures. None: training with labels, in epochs.

    Example: `method_name(FinetuneSettings(), 50_000)` is None.
    """
    if settings.recover == "none" or settings.epochs == 0:
        return None
    if settings.recover != "auto":
        return settings.recover
    return AUTO if pictures < FEW else None
