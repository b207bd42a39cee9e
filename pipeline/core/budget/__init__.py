"""Budget: any number of limits, each on a function of the candidate, all of them at once.

One sign everywhere: a violation <= 0 is within the limit.
"""

from pipeline.core.budget.constraint import Constraint, Verdict, judge, show, violations, worst_verdict
from pipeline.core.budget.metric import Metric, Unit
from pipeline.core.budget.metrics import known_metrics
from pipeline.core.budget.read import Limit, read_budget
from pipeline.core.budget.sample_size import sample_size_notices

__all__ = [
    "Constraint",
    "Limit",
    "Metric",
    "Unit",
    "Verdict",
    "judge",
    "known_metrics",
    "read_budget",
    "sample_size_notices",
    "show",
    "violations",
    "worst_verdict",
]
