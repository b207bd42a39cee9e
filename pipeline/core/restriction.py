"""Restriction: which layers of a network may lose channels, how many must be left, and whether blocks can be dropped."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.errors import ModelError

__all__ = ["NO_RESTRICTION", "Restriction", "matches", "refuse_unmatched"]

NEAREST = 3
"""Number of names that an error suggests."""


@dataclass(frozen=True)
class Restriction:
    """Patterns of layer names, as in a shell: `*`, `?` and `[...]`. A pattern that matches a module matches all layers in it.

    >>> Restriction(freeze=("backbone.layer1",)).min_width
    ()

    Raises ModelError if a share is not above 0 and at most 1.
    """

    freeze: tuple[str, ...] = ()
    """Layers that keep all their channels."""
    only: tuple[str, ...] = ()
    """If there are any, all other layers keep all their channels."""
    min_width: tuple[tuple[str, float], ...] = ()
    """(pattern, share): the smallest share of its channels that a layer keeps, above 0 and at most 1."""
    depth: bool = False
    """Whether whole blocks can be dropped."""

    def __post_init__(self) -> None:
        """Raises ModelError for a share that is out of range."""
        for pattern, share in self.min_width:
            if not (math.isfinite(share) and 0 < share <= 1):
                raise ModelError(f"min-width {pattern}: got {share:g}; give a share above 0 and at most 1, such as 0.5 or 50%")

    def facts(self) -> dict[str, object]:
        """The patterns that are given, and whether blocks can be dropped, for the identity of a job. Empty by default."""
        found: dict[str, object] = {"freeze": list(self.freeze), "only": list(self.only), "min_width": dict(self.min_width)}
        found["depth"] = "auto" if self.depth else ""
        return {name: given for name, given in found.items() if given}

    def reason_to_keep(self, layers: Iterable[str]) -> str | None:
        """Why a group of these layers keeps all its channels, or None if it may lose some.

        One frozen layer is enough, because the layers of a group can only be pruned together. For the same reason, `only` must
        match all of them.
        """
        layers = list(layers)
        for pattern in self.freeze:
            frozen = [layer for layer in layers if matches(pattern, layer)]
            if frozen:
                return f"--freeze '{pattern}' matches {frozen[0]}"
        outside = [layer for layer in layers if not any(matches(pattern, layer) for pattern in self.only)]
        if self.only and outside:
            return f"--only does not match {outside[0]}, which must be pruned with it"
        return None

    def reason_to_keep_block(self, layers: Iterable[str]) -> str | None:
        """Why a block of these layers cannot be dropped, or None. A layer with a smallest width keeps its block."""
        layers = list(layers)
        found = next(((pattern, layer) for pattern, _ in self.min_width for layer in layers if matches(pattern, layer)), None)
        return self.reason_to_keep(layers) or (f"--min-width '{found[0]}' matches {found[1]}" if found else None)

    def fewest(self, layers: Iterable[str], channels: int) -> int:
        """The smallest number of its `channels` that a group of these layers may keep; the largest if several patterns match."""
        layers = list(layers)
        shares = [share for pattern, share in self.min_width if any(matches(pattern, layer) for layer in layers)]
        return max([1, *(math.ceil(round(share * channels, 6)) for share in shares)])


NO_RESTRICTION = Restriction()


def matches(pattern: str, layer: str) -> bool:
    """Whether `pattern` matches the name of the layer, or of a module that contains it.

    >>> matches("layer1", "layer1.0.conv2"), matches("layer*.conv2", "layer1.0.conv2"), matches("layer1", "layer10.conv")
    (True, True, False)
    """
    parts = layer.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts) + 1))


def refuse_unmatched(restriction: Restriction, layers: Iterable[str]) -> None:
    """Raise ModelError, with the nearest names, if a pattern matches none of the network's `layers`."""
    layers = sorted(set(layers))
    given: Mapping[str, Iterable[str]] = {
        "--freeze": restriction.freeze,
        "--only": restriction.only,
        "--min-width": (pattern for pattern, _ in restriction.min_width),
    }
    for option, patterns in given.items():
        for pattern in patterns:
            if not any(matches(pattern, layer) for layer in layers):
                near = difflib.get_close_matches(pattern.rstrip("*."), layers, NEAREST, 0.0)
                advice = f"the nearest names are {', '.join(near)}" if near else "the network has no layers with channels"
                raise ModelError(f"{option} '{pattern}': matches no layer of the network; {advice}")
