"""Choice notices: say why the chosen plan is not surely within the budget, or thinner than it has to be."""

from pipeline.core.budget import Constraint, judge, violations
from pipeline.core.candidate import Candidate
from pipeline.core.remark import Remark

__all__ = ["choice_notices"]

LITTLE_USED = 0.85
"""Below this share of every limit, a plan is much thinner than it has to be."""


def choice_notices(
    constraints: tuple[Constraint, ...], chosen: Candidate, dense: Candidate, better: Candidate | None, *, is_thinnest: bool
) -> tuple[str, ...]:
    """Return one sentence if the choice is not what an undisturbed machine would have given, and otherwise nothing.

    `chosen` as it was measured again. `better`: the plan with the highest score of those that score more and whose figures were
    within the budget in the search. `is_thinnest`: no plan of the search could be chosen. `constraints` are those that guide the
    search.
    """
    is_sure = judge(constraints, chosen, dense) == "within"
    used = max((1 + each.value for each in violations(constraints, chosen, dense)), default=1.0)
    reachable = better if used < LITTLE_USED else None
    doubts = dict.fromkeys(remark for constraint in constraints for remark in constraint.doubts(chosen))
    if is_sure and not is_thinnest and reachable is None:
        return ()
    text = f"{_reason(tuple(doubts), is_sure=is_sure, is_thinnest=is_thinnest)}: {_figures(constraints, chosen, dense)}"
    if reachable is not None:
        text += f"; a plan with a higher score had {_figures(constraints, reachable, dense)} in the search"
    advice = dict.fromkeys(remark.advice for remark in doubts if remark.advice)
    if advice or reachable is not None:
        text += f"; {', '.join(advice) or 'leave the machine alone'}, then run again with another --out"
    return (text,)


def _reason(doubts: tuple[Remark, ...], *, is_sure: bool, is_thinnest: bool) -> str:
    if is_thinnest:
        because = f" ({'; '.join(remark.text for remark in doubts)})" if doubts else ""
        return f"no other plan had figures within the budget{because}, so the thinnest plan is taken"
    if doubts:
        return f"the plan was chosen by disturbed measurements ({'; '.join(remark.text for remark in doubts)})"
    return (
        "the chosen plan uses much less than the budget allows"
        if is_sure
        else "no plan is surely within the budget; the nearest is taken"
    )


def _figures(constraints: tuple[Constraint, ...], candidate: Candidate, dense: Candidate) -> str:
    """'latency p50 43.1 % [36.0, 52.3] of 50.0 %' for each limit."""
    return ", ".join(_figure(constraint, candidate, dense) for constraint in constraints)


def _figure(constraint: Constraint, candidate: Candidate, dense: Candidate) -> str:
    found, limit = constraint.figure(candidate, dense), constraint.show(constraint.limit)
    if found is None:
        return f"{constraint.metric.title} not known (limit {limit})"
    interval = f" [{constraint.show(found.low)}, {constraint.show(found.high)}]" if found.high > found.low else ""
    return f"{constraint.metric.title} {constraint.show(found.value)}{interval} (limit {limit})"
