"""Budget: any number of limits on functions of the candidate, which must all be met.

The sign is the same everywhere: a violation <= 0 is within the limit.
"""

from pipeline.core.budget.constraint import Constraint, Verdict, judge, show, violations, worst_verdict
from pipeline.core.budget.metric import Metric, Unit
from pipeline.core.budget.metrics import known_metrics
from pipeline.core.budget.read import Limit, read_budget, read_limit
from pipeline.core.budget.sample_size import sample_size_notices
from pipeline.core.budget.several import Budget, all_constraints, budget_facts, limits_in, read_budgets

__all__ = [
    "Budget",
    "Constraint",
    "Limit",
    "Metric",
    "Unit",
    "Verdict",
    "all_constraints",
    "budget_facts",
    "judge",
    "known_metrics",
    "limits_in",
    "read_budget",
    "read_budgets",
    "read_limit",
    "sample_size_notices",
    "show",
    "violations",
    "worst_verdict",
]
