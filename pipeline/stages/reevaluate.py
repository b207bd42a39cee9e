"""Re-evaluation: measure the best searched plans again, and choose the best one that still meets the budget."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.budget import judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.core.statistics import Estimate
from pipeline.stages.evaluate import Evaluator

__all__ = ["TOP_K", "FeasiblePlan", "Reevaluated", "best_reevaluated", "expected_final_use", "reevaluate"]

TOP_K = 8
"""Largest number of plans that are measured again."""
REPEATED = math.sqrt(2)
"""The 95 % interval for the figure of a repeated measurement is this much wider than the confidence interval of the first."""
LEAST_SHARE = 1e-9
"""Smallest used share of a limit, so that nothing is divided by zero."""


def reevaluate(evaluator: Evaluator) -> Candidate:
    """The best plan that meets the budget when it is measured again in fresh processes. See `best_reevaluated`.

    If none does, the thinnest plan is returned. It was within the budget, or undecided, before the search.
    """
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    numbers, ranked = itertools.count(1), _ranked(evaluator)
    most = min(TOP_K, len(ranked))
    measured: list[list[Estimate]] = []

    def measure_again(plan: FeasiblePlan) -> Reevaluated:
        number, again = next(numbers), _again(evaluator, plan.candidate)
        context.callback.progress(number, most, f"{number} of at most {most} plans are measured again")
        if again.failure:
            return Reevaluated(again, within=False, used=())
        measured.append(violations(context.searched_constraints, again, dense))
        within = judge(context.searched_constraints, again, dense) == "within"
        found = Reevaluated(again, within, expected_final_use(measured))
        if within and not found.holds:
            context.callback.say("the plan is so close to a limit that the final verdict may be undecided")
        return found

    best = best_reevaluated(ranked, measure_again)
    if best is None:
        return _again(evaluator, evaluator.ends.thinnest)
    if next(numbers) > 2:
        context.callback.say(f"chosen: score {best.candidate.score or 0:.2f}")
    return best.candidate


@dataclass(frozen=True)
class FeasiblePlan:
    """A plan that was within the budget in the search."""

    candidate: Candidate
    reward: float
    used: tuple[float, ...]
    """Used share of each limit, above 0."""


@dataclass(frozen=True)
class Reevaluated:
    """The result of measuring a plan again."""

    candidate: Candidate
    within: bool
    """Whether the whole interval of each figure is within its limit."""
    used: tuple[float, ...]
    """Share of each limit that the final measurement is expected to use at most. Empty if the measurement failed."""

    @property
    def holds(self) -> bool:
        """Whether the final measurement is expected to be within every limit too."""
        return self.within and all(used <= 1 for used in self.used)


def expected_final_use(measured: Sequence[Sequence[Estimate]]) -> tuple[float, ...]:
    """The largest share of each limit that a repeat of the last of `measured` is expected to use.

    `measured` are the violations of each plan so far. The machine may become as busy again as it was for any of them, so the
    widest of their intervals counts, as a share of its figure.
    """
    shares = []
    for each in zip(*measured, strict=True):
        widest = max((violation.high - violation.value) / max(1 + violation.value, LEAST_SHARE) for violation in each)
        shares.append((1 + each[-1].value) * (1 + REPEATED * widest))
    return tuple(shares)


def best_reevaluated(ranked: Sequence[FeasiblePlan], measure_again: Callable[[FeasiblePlan], Reevaluated]) -> Reevaluated | None:
    """The best plan that still meets the budget, found with at most TOP_K measurements. None if there is none.

    The best plan of a search may only have been lucky. `ranked` is best first. Measuring a plan again gives its degradation: the
    new figure over the search's. Until a plan holds, the largest degradation so far is applied to the remaining plans. The best
    plan still predicted to hold is next, or else the one with the most room. If a plan holds, better plans are tried that would
    hold with its degradation, because an unlucky plan may have made the choice too thin. If none holds, the one within the budget
    that uses the smallest share of its limits is returned: it may end undecided.
    """
    remaining = list(ranked)
    best: Reevaluated | None = None
    nearest: Reevaluated | None = None
    degradation = [1.0] * (len(ranked[0].used) if ranked else 0)
    for _ in range(min(TOP_K, len(ranked))):
        predicted = (each for each in remaining if all(used * r <= 1 for used, r in zip(each.used, degradation, strict=True)))
        plan = next(predicted, None)
        if plan is None and best:
            break
        plan = plan or min(remaining, key=lambda each: max(each.used, default=0.0))
        remaining.remove(plan)
        result = measure_again(plan)
        if not result.used and degradation:
            continue
        ratios = [now / then for now, then in zip(result.used, plan.used, strict=True)]
        if result.holds:
            best, degradation = result, ratios
            remaining = [each for each in remaining if each.reward > plan.reward]
        else:
            degradation = [max(pair) for pair in zip(degradation, ratios, strict=True)]
            if result.within and (nearest is None or max(result.used) < max(nearest.used)):
                nearest = result
    return best or nearest


def _ranked(evaluator: Evaluator) -> list[FeasiblePlan]:
    """The plans that were feasible in the search, best first. If rewards are equal, the one with more room comes first."""
    seen: dict[ChannelPlan, Candidate] = {}
    for trial in evaluator.measurer.context.run.trials:
        if trial.role in ("dense", "thinnest", "search") and evaluator.evaluation_of(trial.candidate).feasible:
            seen.setdefault(trial.candidate.plan, trial.candidate)
    ranked = sorted(
        seen.values(), key=lambda c: (-evaluator.reward_of(c), max(evaluator.evaluation_of(c).violations, default=0.0))
    )
    constraints, dense = evaluator.measurer.context.searched_constraints, evaluator.ends.dense
    used = [tuple(max(1 + each.value, LEAST_SHARE) for each in violations(constraints, c, dense)) for c in ranked]
    return [FeasiblePlan(c, evaluator.reward_of(c), share) for c, share in zip(ranked, used, strict=True)]


def _again(evaluator: Evaluator, searched: Candidate) -> Candidate:
    """Measure `searched` again, and show what changed."""
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    again = evaluator.measurer.again(searched, dense)
    texts = [f"score {searched.score or 0:.2f}: {judge(context.searched_constraints, again, dense)}"]
    for constraint in context.searched_constraints:
        then, now = (constraint.figure(each, dense) for each in (searched, again))
        if then and now and now.low > then.high:
            texts.append(f"{constraint.metric.title} {constraint.show(now.value)}, in the search {constraint.show(then.value)}")
    context.callback.say("; ".join(texts))
    return again
