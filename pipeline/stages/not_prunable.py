"""Not prunable: say before the search which layers keep their width, and why."""

import re
from collections import defaultdict
from collections.abc import Iterator

from pipeline.core.plan import NotPrunable, PruneSpace

__all__ = ["by_kind", "not_prunable"]

SHOWN = 3
"""Number of layers that are named for one reason. The report lists all."""

OWN = re.compile(r"(?<= in )'[^']*'|(?<= after )'[^']*'|(?<=its )\d+(?= outputs)|(?<=by )[\d.e+-]+(?= %)")
"""Parts of a reason that differ from layer to layer: modules, and numbers."""


def not_prunable(space: PruneSpace) -> Iterator[str]:
    """Yield one line for each kind of reason why layers keep their width; none if only the last layer does, as usual."""
    for layers in by_kind(space):
        if len(space.frozen) == len(layers) == 1 and "output" in layers[0].reason:
            continue
        names = ", ".join(layer.name for layer in layers[:SHOWN])
        more = f" and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
        others = "" if len({layer.reason for layer in layers}) == 1 else "; the others for similar reasons"
        yield f"not prunable: {names}{more}: {layers[0].reason}{others}"


def by_kind(space: PruneSpace) -> list[list[NotPrunable]]:
    """The layers that keep their width, by reason. Reasons that differ only in their modules and numbers are of one kind."""
    kinds: dict[str, list[NotPrunable]] = defaultdict(list)
    for layer in space.frozen:
        kinds[OWN.sub("", layer.reason)].append(layer)
    return list(kinds.values())
