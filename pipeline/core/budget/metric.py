"""Metric: a function of a candidate that a budget can limit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Measurement
from pipeline.core.remark import Remark
from pipeline.core.statistics import Estimate

__all__ = ["Metric", "Unit", "ratio_of_values"]

Unit = Literal["ms", "bytes", "count", "points"]
Evaluate = Callable[[Candidate, Candidate], Estimate | None]
"""(candidate, dense) -> the figure with its interval; None when it is not known."""


@dataclass(frozen=True)
class Metric:
    """A figure of a candidate that a budget can limit.

    >>> from pipeline import Metric
    >>> Metric.of("energy", lambda candidate: 2e-9 * candidate.macs).key
    'energy'
    """

    key: str
    """Name in a profile and on the command line."""
    title: str
    unit: Unit
    absolute: Evaluate
    """The figure itself."""
    relative: Evaluate | None
    """The figure divided by the dense network's; null where that has no meaning."""
    measured: bool = False
    """True for time and memory, whose absolute values only the device can show."""
    needs_memory: bool = False
    """True where memory must be measured as well as time."""
    doubts: Callable[[Measurement], tuple[Remark, ...]] = field(default=lambda measured: ())
    """Returns the remarks that forbid a verdict on this metric."""
    after_finetuning: bool = False
    """True where the figure has no meaning before fine-tuning; such a limit does not guide the search."""

    @classmethod
    def of(cls, key: str, function: Callable[[Candidate], float]) -> "Metric":
        """Create a metric from a user's own function of the candidate, in whatever unit it returns."""
        absolute = _exact(function)
        return cls(key=key, title=key, unit="count", absolute=absolute, relative=ratio_of_values(absolute))


def _exact(function: Callable[[Candidate], float]) -> Evaluate:
    return lambda candidate, dense: Estimate.exact(float(function(candidate)))


def ratio_of_values(absolute: Evaluate) -> Evaluate:
    """Return a function for the candidate's figure over the dense network's. It is for figures that are counted, not timed."""

    def relative(candidate: Candidate, dense: Candidate) -> Estimate | None:
        value, whole = absolute(candidate, dense), absolute(dense, dense)
        return value.scaled(1.0 / whole.value) if value and whole and whole.value else None

    return relative
