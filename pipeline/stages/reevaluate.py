"""Re-evaluation: measure the best searched plans again, and choose the best one that still meets the budget."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.core.budget import Constraint, judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.core.profile import ProbeSettings
from pipeline.core.run import Trial
from pipeline.core.statistics import Estimate
from pipeline.stages.choice_notices import choice_notices
from pipeline.stages.evaluate import Evaluator
from pipeline.stages.sequential_measurement import REPEATS, measurement_s
from pipeline.system.units import format_duration

__all__ = [
    "TOP_K",
    "FeasiblePlan",
    "Reevaluated",
    "best_reevaluated",
    "duration_text",
    "expected_final_use",
    "judged_again",
    "rank",
    "reevaluate",
]

TOP_K = 8
"""Largest number of plans that are measured again."""
REPEATED = math.sqrt(2)
"""The 95 % interval for the figure of a repeated measurement is this much wider than the confidence interval of the first."""
MOST_TIMES = 2 + REPEATS
"""How often a plan is measured again at most; see `measure_again`."""
LEAST_SHOWN_S = 0.5
LEAST_SHARE = 1e-9
"""Smallest used share of a limit, so that nothing is divided by zero."""


def reevaluate(evaluator: Evaluator) -> Candidate:
    """The best plan that meets the budget when it is measured again in fresh processes. See `best_reevaluated`.

    If no plan of the search can meet it, the thinnest plan is returned. A notice says why the choice is not surely within the
    budget, or thinner than it has to be.
    """
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    numbers, ranked = itertools.count(1), _ranked(evaluator)
    most = min(TOP_K, len(ranked))
    measured: list[list[Estimate]] = []
    context.callback.say(duration_text(most, context.profile.probe, context.run.find("uniform", 1)))

    def measure_again(plan: FeasiblePlan) -> Reevaluated:
        number = next(numbers)

        def begins(measurement: int) -> None:
            done = (number - 1) * MOST_TIMES + measurement - 1
            text = f"plan {number} of at most {most}, measurement {measurement} of at most {MOST_TIMES}"
            context.callback.progress(done, most * MOST_TIMES, text)

        again = _again(evaluator, plan.candidate, begins)
        context.callback.progress(number * MOST_TIMES, most * MOST_TIMES, f"{number} of at most {most} plans are measured again")
        result = judged_again(context.searched_constraints, again, dense, measured)
        if result.within and not result.holds:
            context.callback.say("the plan is so close to a limit that the final verdict may be undecided")
        return result

    def thinnest_begins(measurement: int) -> None:
        text = f"the thinnest plan, measurement {measurement} of at most {MOST_TIMES}"
        context.callback.progress(measurement - 1, MOST_TIMES, text)

    best = best_reevaluated(ranked, measure_again)
    chosen = best.candidate if best else _again(evaluator, evaluator.ends.thinnest, thinnest_begins)
    if best and next(numbers) > 2:
        context.callback.say(f"chosen: score {chosen.score or 0:.2f}")
    better = sorted((plan for plan in ranked if plan.reward > evaluator.reward_of(chosen)), key=lambda plan: -plan.reward)
    context.notices.add(
        *choice_notices(
            context.searched_constraints, chosen, dense, better[0].candidate if better else None, is_thinnest=best is None
        )
    )
    return chosen


def duration_text(plans: int, settings: ProbeSettings, thinnest: Trial | None) -> str:
    """What will be measured again, and how long it takes if a process takes as long as those of the thinnest plan."""
    what = "no plan of the search is within the budget, so the thinnest plan is measured again"
    if plans:
        count = f"up to {plans - 1} others" if plans > 2 else "one other"
        others = f", and {count} if it is not within the budget then" if plans > 1 else ""
        what = f"the best plan is measured again{others}"
    times = f"{what}; 2 to {MOST_TIMES} measurements of {settings.final_processes} processes per plan"
    once_s = measurement_s(settings, thinnest)
    if once_s < LEAST_SHOWN_S:
        return times
    least_s, most_s = 2 * once_s, max(plans, 1) * MOST_TIMES * once_s
    return f"{times}, which takes about {format_duration(least_s)}, and {format_duration(most_s)} at most"


@dataclass(frozen=True)
class FeasiblePlan:
    """A plan whose figures were within the budget in the search."""

    candidate: Candidate
    reward: float
    used: tuple[float, ...]
    """Used share of each limit, above 0."""


@dataclass(frozen=True)
class Reevaluated:
    """The result of measuring a plan again."""

    candidate: Candidate
    within: bool
    """Whether the whole interval of each figure is within its limit. Doubts concern the machine and not the plan, so they do
    not count.
    """
    used: tuple[float, ...]
    """Share of each limit that the final measurement is expected to use at most. Empty if the measurement failed."""
    near: bool = False
    """Whether each figure is within its limit, and its interval may contain the limit."""

    @property
    def holds(self) -> bool:
        """Whether the final measurement is expected to be within every limit too."""
        return self.within and all(used <= 1 for used in self.used)


def judged_again(
    constraints: tuple[Constraint, ...], again: Candidate, dense: Candidate, measured: list[list[Estimate]]
) -> Reevaluated:
    """Whether the candidate `again` is within the budget. `measured` gets its violations; see `expected_final_use`."""
    if again.failure:
        return Reevaluated(again, within=False, used=())
    found = violations(constraints, again, dense)
    measured.append(found)
    within, near = (all(getattr(each, end) <= 0 for each in found) for end in ("high", "value"))
    return Reevaluated(again, within, expected_final_use(measured), near)


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
    hold with its degradation, because an unlucky plan may have made the choice too thin. If none holds, the nearest is returned,
    which may end undecided: the one that uses the smallest share of its limits, of those within the budget if there are any,
    and otherwise of those whose figures are within it.
    """
    remaining = list(ranked)
    best: Reevaluated | None = None
    nearest: list[Reevaluated] = []
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
            nearest += [result] if result.within or result.near else []
    return best or min(nearest, key=lambda each: (not each.within, max(each.used)), default=None)


def _ranked(evaluator: Evaluator) -> list[FeasiblePlan]:
    context, ends = evaluator.measurer.context, evaluator.ends
    seen: dict[ChannelPlan, Candidate] = {}
    for trial in context.run.trials:
        if trial.role in ("dense", "thinnest", "search"):
            seen.setdefault(trial.candidate.plan, trial.candidate)
    rewarded = [(candidate, evaluator.reward_of(candidate)) for candidate in seen.values()]
    return rank(context.searched_constraints, rewarded, ends.dense, ends.thinnest.plan)


def rank(
    constraints: tuple[Constraint, ...], rewarded: Iterable[tuple[Candidate, float]], dense: Candidate, thinnest: ChannelPlan
) -> list[FeasiblePlan]:
    """Return the plans that can be chosen. Those that were within the budget in the search come first, best first.

    Then come those whose figures were within it, although their intervals contain a limit. On a busy machine, many intervals do.

    If rewards are equal, the plan with more room comes first. The `thinnest` plan is left out unless a plan that was within the
    budget is worse, because it is the last resort. `rewarded`: candidates with their rewards.
    """
    found = [(candidate, reward, violations(constraints, candidate, dense)) for candidate, reward in rewarded]
    plans = [
        (max((each.high for each in over), default=0.0), FeasiblePlan(candidate, reward, _used(over)))
        for candidate, reward, over in found
        if all(each.value <= 0 for each in over)
    ]
    plans.sort(key=lambda pair: (pair[0] > 0, -pair[1].reward, pair[0]))
    within = [plan for most, plan in plans if most <= 0]
    last = within[-1] if within and within[-1].candidate.plan == thinnest else None
    return [plan for _, plan in plans if plan is not last]


def _used(found: Sequence[Estimate]) -> tuple[float, ...]:
    return tuple(max(1 + violation.value, LEAST_SHARE) for violation in found)


def _again(evaluator: Evaluator, searched: Candidate, begins: Callable[[int], None] = lambda number: None) -> Candidate:
    """Measure `searched` again, and show what changed."""
    context, dense = evaluator.measurer.context, evaluator.ends.dense
    again = evaluator.measurer.again(searched, dense, begins)
    texts = [f"score {searched.score or 0:.2f}: {judge(context.searched_constraints, again, dense)}"]
    for constraint in context.searched_constraints:
        then, now = (constraint.figure(each, dense) for each in (searched, again))
        if then and now and now.low > then.high:
            texts.append(f"{constraint.metric.title} {constraint.show(now.value)}, in the search {constraint.show(then.value)}")
    context.callback.say("; ".join(texts))
    return again
