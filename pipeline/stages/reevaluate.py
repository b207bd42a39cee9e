"""Re-evaluation: measure the best searched plans again, and choose the best one that still meets the budget."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.budget import judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.stages.evaluate import Evaluator

__all__ = ["TOP_K", "Finalist", "Reevaluated", "best_confirmed", "reevaluate"]

TOP_K = 8
"""Largest number of plans that are measured again."""


def reevaluate(evaluator: Evaluator) -> Candidate:
    """The best plan that meets the budget when it is measured again in fresh processes. See `best_confirmed`.

    If none does, the thinnest plan is returned. It was within the budget, or undecided, before the search.
    """
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    numbers, ranked = itertools.count(1), _ranked(evaluator)
    most = min(TOP_K, len(ranked))

    def confirm(finalist: Finalist) -> Reevaluated:
        number = next(numbers)
        again = _again(evaluator, finalist.candidate, number)
        context.callback.progress(number, most, f"{number} of at most {most} plans are measured again")
        used = () if again.failure else tuple(1 + each.high for each in violations(context.searched_constraints, again, dense))
        return Reevaluated(again, judge(context.searched_constraints, again, dense) == "within", used)

    best = best_confirmed(ranked, confirm)
    if best is None:
        return _again(evaluator, evaluator.ends.thinnest, next(numbers))
    if next(numbers) > 2:
        context.callback.say(f"chosen: score {best.candidate.score or 0:.2f}")
    return best.candidate


@dataclass(frozen=True)
class Finalist:
    """A plan that was within the budget in the search."""

    candidate: Candidate
    reward: float
    used: tuple[float, ...]
    """Used share of each limit, above 0."""


@dataclass(frozen=True)
class Reevaluated:
    """The result of measuring a plan again."""

    candidate: Candidate
    holds: bool
    used: tuple[float, ...]
    """Used share of each limit at the upper end of its interval. Empty if the measurement failed."""


def best_confirmed(ranked: Sequence[Finalist], confirm: Callable[[Finalist], Reevaluated]) -> Reevaluated | None:
    """The best plan that still meets the budget, found with at most TOP_K measurements. None if there is none.

    The best plan of a search may only have been lucky. `ranked` is best first. Measuring a plan again gives its degradation: the
    new figure over the search's. Until a plan holds, the largest degradation so far is applied to the remaining plans. The best
    plan still predicted to meet the budget is next, or else the one with the most room. If a plan holds, better plans are tried
    that would meet the budget with its degradation, because an unlucky plan may have made the choice too thin.
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
    """The plans that were feasible in the search, best first. If rewards are equal, the one with more room comes first."""
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
    """Measure `searched` again, and show what changed."""
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    again = evaluator.measurer.again(searched, number, dense)
    texts = [f"score {searched.score or 0:.2f}: {judge(context.searched_constraints, again, dense)}"]
    for constraint in context.searched_constraints:
        then, now = (constraint.figure(each, dense) for each in (searched, again))
        if then and now and now.low > then.high:
            texts.append(f"{constraint.metric.title} {constraint.show(now.value)}, in the search {constraint.show(then.value)}")
    context.callback.say("; ".join(texts))
    return again
