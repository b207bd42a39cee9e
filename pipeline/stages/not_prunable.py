"""Not prunable: say before the search which layers keep their width, and why."""

from collections import defaultdict
from collections.abc import Iterator

from pipeline.core.plan import PruneSpace

__all__ = ["not_prunable"]

SHOWN = 3
"""Number of layers that are named for one reason. The report lists all."""


def not_prunable(space: PruneSpace) -> Iterator[str]:
    """Yield one line for each reason why layers keep their width, unless only the last layer does, which every network has."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for layer in space.frozen:
        reasons[layer.reason].append(layer.name)
    for reason, names in reasons.items():
        if len(space.frozen) == len(names) == 1 and "output" in reason:
            continue
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"not prunable: {', '.join(names[:SHOWN])}{more}: {reason}"
