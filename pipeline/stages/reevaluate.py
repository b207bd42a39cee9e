"""Which of the searched plans is taken: measured again, best first, until the best one that holds is known."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.candidate import Candidate

__all__ = ["TOP_K", "Finalist", "Reevaluated", "best_confirmed"]

TOP_K = 8
"""Plans that are measured again, at most."""


@dataclass(frozen=True)
class Finalist:
    """A plan that was within the budget when it was searched."""

    candidate: Candidate
    reward: float
    used: tuple[float, ...]
    """The share of each limit that it took, above 0."""


@dataclass(frozen=True)
class Reevaluated:
    """What a second, careful measurement says of it."""

    candidate: Candidate
    holds: bool
    used: tuple[float, ...]
    """The share of each limit at the careful end of its interval; empty where the measurement failed."""


def best_confirmed(ranked: Sequence[Finalist], confirm: Callable[[Finalist], Reevaluated]) -> Reevaluated | None:
    """The best plan that holds, of those that TOP_K measurements can tell; None when none of them did.

    A search picks the luckiest of many samples, and something may have disturbed it; what is shipped must hold without luck.
    `ranked` is best first. Each second measurement shows how many times what the search saw a plan may take. Going down, until
    one holds, the largest such rise so far counts: the next to be measured is the best with room for it, or of the rest the one
    with the most room. A plan that holds may have been thinner than it had to be, chosen by the rise of an unlucky one: from
    there the way goes back up, to better plans that have room for the rise of the one that held.
    """
    remaining = list(ranked)
    held: Reevaluated | None = None
    rise = [1.0] * (len(ranked[0].used) if ranked else 0)
    for _ in range(min(TOP_K, len(ranked))):
        roomy = (each for each in remaining if all(used * r <= 1 for used, r in zip(each.used, rise, strict=True)))
        finalist = next(roomy, None)
        if finalist is None and held:
            break
        finalist = finalist or min(remaining, key=lambda each: max(each.used, default=0.0))
        remaining.remove(finalist)
        confirmed = confirm(finalist)
        if not confirmed.used and rise:
            continue
        rises = [now / then for now, then in zip(confirmed.used, finalist.used, strict=True)]
        if confirmed.holds:
            held, rise = confirmed, rises
            remaining = [each for each in remaining if each.reward > finalist.reward]
        else:
            rise = [max(pair) for pair in zip(rise, rises, strict=True)]
    return held
