"""Constraint: a metric with its limit. The violation is the excess as a share of the limit; <= 0 is within the limit."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.core.budget.metric import Metric, Unit
from pipeline.core.candidate import Candidate
from pipeline.core.remark import Remark
from pipeline.core.statistics import Estimate
from pipeline.system.units import format_bytes, format_count

__all__ = ["Constraint", "Verdict", "judge", "show", "violations", "worst_verdict"]

Verdict = Literal["within", "undecided", "over"]


@dataclass(frozen=True)
class Constraint:
    """`metric` of a candidate must not exceed `limit`. A relative limit is a fraction of the dense network's figure."""

    metric: Metric
    limit: float
    relative: bool

    def figure(self, candidate: Candidate, dense: Candidate) -> Estimate | None:
        """Return the figure that is compared with the limit; None when it is not known."""
        evaluate = self.metric.relative if self.relative else self.metric.absolute
        return evaluate(candidate, dense) if evaluate else None

    def violation(self, candidate: Candidate, dense: Candidate) -> Estimate | None:
        """Return figure / limit - 1 with its interval. For a limit of zero, the divisor is 0.01, one unit in the last digit."""
        figure = self.figure(candidate, dense)
        if figure is None:
            return None
        unit = self.limit or 0.01
        return Estimate(*((value - self.limit) / unit for value in (figure.value, figure.low, figure.high)))

    def verdict(self, candidate: Candidate, dense: Candidate) -> Verdict:
        """Return `within` or `over` only when the whole interval is on that side of the limit, and else `undecided`.

        The verdict is also undecided when the interval may be wrong (`doubts`). One exception: a disturbance that only
        makes runs longer cannot change the verdict `within` for an absolute latency limit.
        """
        violation, doubts = self.violation(candidate, dense), self.doubts(candidate)
        if violation is None:
            return "undecided"
        if violation.high <= 0:
            sure = not doubts or (not self.relative and all(remark.only_slows for remark in doubts))
            return "within" if sure else "undecided"
        return "over" if violation.low > 0 and not doubts else "undecided"

    def doubts(self, candidate: Candidate) -> tuple[Remark, ...]:
        """Return why the figure of this candidate cannot be trusted; empty when it can."""
        return self.metric.doubts(candidate.measurement) if candidate.measurement else ()

    def reason(self, candidate: Candidate, dense: Candidate) -> str:
        """Return why the verdict is undecided and what to do. It is empty without doubts, as the interval then explains it."""
        doubts = self.doubts(candidate)
        if not doubts or self.verdict(candidate, dense) != "undecided":
            return ""
        texts = "; ".join(remark.text for remark in doubts)
        advice = dict.fromkeys(remark.advice for remark in doubts if remark.advice)
        return f"{texts}; {', '.join(advice)}, then run again"

    def show(self, value: float | None) -> str:
        """Format a figure of this constraint for people."""
        return show(value, self.metric.unit, self.relative)

    @property
    def text(self) -> str:
        """The limit, formatted for people: 'latency p50 <= 50.0 %'."""
        return f"{self.metric.title} <= {self.show(self.limit)}{' of dense' if self.relative else ''}"


def show(value: float | None, unit: Unit, relative: bool = False) -> str:
    """Format a value: 0.5 as '50.0 %' when relative; else 1.234 as '1.234 ms', '1.2 MiB', '1.23 points', '1'."""
    if value is None:
        return "not known"
    if relative:
        return f"{100 * value:.1f} %"
    match unit:
        case "ms":
            return f"{value:.3f} ms" if value < 10 else f"{value:.2f} ms"
        case "bytes":
            return format_bytes(value)
        case "points":
            return f"{value:.2f} points"
        case _:
            return format_count(value)


def violations(constraints: Iterable[Constraint], candidate: Candidate, dense: Candidate) -> list[Estimate]:
    """Return one violation per constraint. It is 1, or 100 % over, where the candidate failed or the figure is not known."""
    found = (None if candidate.failure else constraint.violation(candidate, dense) for constraint in constraints)
    return [violation or Estimate.exact(1.0) for violation in found]


def judge(constraints: Iterable[Constraint], candidate: Candidate, dense: Candidate) -> Verdict:
    """Return the worst verdict over all `constraints`. A candidate that failed is `over`."""
    if candidate.failure is not None:
        return "over"
    return worst_verdict(constraint.verdict(candidate, dense) for constraint in constraints)


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst verdict in the order `over`, `undecided`, `within`. Without any verdict, it is `within`."""
    found = set(verdicts)
    return "over" if "over" in found else "undecided" if "undecided" in found else "within"
