"""Re-evaluation: the best searched plans are measured again, and the best one that still meets the budget is chosen."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.budget import judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.stages.evaluate import Evaluator

__all__ = ["TOP_K", "Finalist", "Reevaluated", "best_confirmed", "reevaluate"]

TOP_K = 8
"""The number of plans that are measured again, at most."""


def reevaluate(evaluator: Evaluator) -> Candidate:
    """The best plan that meets the budget when it is measured again in fresh processes; see `best_confirmed`.

    When none does, the thinnest plan is returned. It was within the budget, or undecided, at the start.
    """
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    numbers = itertools.count(1)

    def confirm(finalist: Finalist) -> Reevaluated:
        again = _again(evaluator, finalist.candidate, next(numbers))
        used = () if again.failure else tuple(1 + each.high for each in violations(context.searched_constraints, again, dense))
        return Reevaluated(again, judge(context.searched_constraints, again, dense) == "within", used)

    best = best_confirmed(_ranked(evaluator), confirm)
    if best is None:
        return _again(evaluator, evaluator.ends.thinnest, next(numbers))
    if next(numbers) > 2:
        context.callback.say(f"chosen: score {best.candidate.score or 0:.2f}")
    return best.candidate


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


def _ranked(evaluator: Evaluator) -> list[Finalist]:
    """The plans that were feasible in the search, best first; of equal rewards the one with more room."""
    seen: dict[ChannelPlan, Candidate] = {}
    for trial in evaluator.measurer.context.run.trials:
        if trial.role in ("dense", "thinnest", "search") and evaluator.evaluation_of(trial.candidate).feasible:
            seen.setdefault(trial.candidate.plan, trial.candidate)
    ranked = sorted(
        seen.values(), key=lambda c: (-evaluator.reward_of(c), max(evaluator.evaluation_of(c).violations, default=0.0))
    )
    constraints, dense = evaluator.measurer.context.searched_constraints, evaluator.ends.dense
    used = [tuple(max(1 + each.value, 1e-9) for each in violations(constraints, c, dense)) for c in ranked]
    return [Finalist(c, evaluator.reward_of(c), share) for c, share in zip(ranked, used, strict=True)]


def _again(evaluator: Evaluator, searched: Candidate, number: int) -> Candidate:
    """`searched`, measured again; what changed is shown."""
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    again = evaluator.measurer.again(searched, number, dense)
    texts = [f"score {searched.score or 0:.2f}: {judge(context.searched_constraints, again, dense)}"]
    for constraint in context.searched_constraints:
        then, now = (constraint.figure(each, dense) for each in (searched, again))
        if then and now and now.low > then.high:
            texts.append(f"{constraint.metric.title} {constraint.show(now.value)}, in the search {constraint.show(then.value)}")
    context.callback.say("; ".join(texts))
    return again
