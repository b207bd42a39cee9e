"""Dense and thinnest: the two plans between which every other plan lies. Both are measured before the search."""

import itertools
from dataclasses import dataclass

from pipeline.core.budget import violations
from pipeline.core.candidate import Candidate
from pipeline.core.plan import ChannelPlan
from pipeline.errors import BudgetError, ModelError, UnreachableBudget
from pipeline.search.problem import Evaluation, Problem, SearchSpace
from pipeline.search.uniform import bisect
from pipeline.stages.context import RunContext
from pipeline.stages.initial_weights import InitialWeights
from pipeline.stages.measure_plans import PlanMeasurer
from pipeline.stages.not_prunable import not_prunable
from pipeline.stages.provider_check import not_measured

__all__ = ["DenseAndThinnest", "measure_dense_and_thinnest", "score_thinnest", "widest_uniform"]

BISECTIONS = 5
"""Number of uniform plans that are measured to find where the budget lies."""


@dataclass(frozen=True)
class DenseAndThinnest:
    """The dense network and the thinnest plan, both measured."""

    dense: Candidate
    thinnest: Candidate


def measure_dense_and_thinnest(measurer: PlanMeasurer, space: SearchSpace, weights: InitialWeights) -> DenseAndThinnest:
    """Measure both plans. The thinnest plan is not scored yet.

    Raises ProbeError if the dense network cannot be measured, ModelError if its score is not a finite number, BudgetError if
    a limit cannot be judged from the runs that the profile allows, UnreachableBudget if even the thinnest plan misses it.
    """
    context = measurer.context
    context.callback.progress(0, 2, "measuring and scoring the dense network")
    dense = measurer.dense(space.dense(), weights)
    if dense.failure:
        raise not_measured("the dense network", dense.failure)
    if dense.score is None:
        raise ModelError(
            "the dense network's score is not a finite number; check what `evaluate` returns for it, then choose another out, "
            "because the run directory stores this score"
        )
    for constraint in context.searched_constraints:
        if constraint.figure(dense, dense) is None:
            raise BudgetError(
                f"budget: {constraint.text} cannot be judged, because the figure is not available; a p90 needs 64 runs "
                "(probe.runs x probe.processes, within probe.time_limit_s), memory needs a Linux system"
            )
    context.callback.progress(1, 2, "measuring the thinnest plan")
    thinnest = measurer.uniform(space.thinnest(), 1)
    for constraint in context.searched_constraints:
        figure = constraint.figure(thinnest, dense)
        if figure and constraint.verdict(thinnest, dense) == "over":
            kind = f"{constraint.metric.title}{', of dense' if constraint.relative else ''}"
            without = " and without its blocks" if space.has_blocks else ""
            kept = "".join(f"; {line}" for line in not_prunable(context.builder.space))
            raise UnreachableBudget(
                f"at minimum width{without} this network needs {constraint.show(figure.value)} ({kind}), but the budget is "
                f"{constraint.show(constraint.limit)}{kept}; raise the limit, or start from a smaller network"
            )
    return DenseAndThinnest(dense, thinnest)


def widest_uniform(measurer: PlanMeasurer, space: SearchSpace, dense: Candidate) -> float:
    """The largest share of its channels that every group can keep within the budget. It is measured by bisection."""
    numbers = itertools.count(2)  # the first uniform plan is the thinnest one
    constraints = measurer.context.searched_constraints

    def evaluate(plan: ChannelPlan) -> Evaluation:
        number = next(numbers)
        measurer.context.callback.progress(number - 2, BISECTIONS, "measuring plans that keep one share of every group")
        candidate = measurer.uniform(plan, number)
        return Evaluation(plan, 0.0, tuple(each.high for each in violations(constraints, candidate, dense)))

    widest = bisect(Problem(space, evaluate, BISECTIONS, len(constraints), seed=0), BISECTIONS)
    measurer.context.callback.progress(0, 0, "deciding whether a supernet helps")
    return widest


def score_thinnest(measurer: PlanMeasurer, measured: DenseAndThinnest, weights: InitialWeights) -> DenseAndThinnest:
    """Score the thinnest plan with the weights that the search uses, return both, and show what is known of them."""
    measurer.context.callback.progress(0, 0, "scoring the thinnest plan")
    ends = DenseAndThinnest(measured.dense, measurer.thinnest(measured.thinnest, weights))
    _show(measurer.context, ends)
    return ends


def _show(context: RunContext, ends: DenseAndThinnest) -> None:
    for name, candidate in (("dense", ends.dense), ("thinnest", ends.thinnest)):
        limited = context.searched_constraints
        figures = dict.fromkeys(f"{c.metric.title} {c.show(f.value)}" for c in limited if (f := c.figure(candidate, ends.dense)))
        p50 = f"{candidate.measurement.latency_p50_ms.value:.3f} ms, " if candidate.measurement else ""
        context.callback.say(f"{name}: {p50}{', '.join(figures)}, score {candidate.score or 0:.2f}")
    measured = ends.dense.measurement
    if measured and measured.remarks:
        texts = "; ".join(remark.text for remark in measured.remarks)
        advice = dict.fromkeys(remark.advice for remark in measured.doubts)
        effect = f"verdicts may stay undecided ({', '.join(advice)})" if advice else "intervals will be wide"
        context.notices.add(f"other programs disturb the measurements ({texts}), so {effect}")
