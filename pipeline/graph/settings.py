"""Settings: how the channels of a network are chosen."""

from dataclasses import dataclass

from pipeline.core.plan import Importance
from pipeline.core.restriction import NO_RESTRICTION, Restriction
from pipeline.graph.importance import Batches
from pipeline.graph.labels.trace import Grouped

__all__ = ["PruningSettings"]


@dataclass(frozen=True)
class PruningSettings:
    """Which channels may leave a network, and which of them leave first."""

    importance: Importance = "l2"
    """The criterion that ranks the channels of a group."""
    batches: Batches = ()
    """Used only for `taylor` and `reconstruction`."""
    grouped: Grouped = "evenly"
    """Evenly from each group of a grouped convolution or GroupNorm, or whole groups."""
    restriction: Restriction = NO_RESTRICTION
    """The layers that keep their channels."""
