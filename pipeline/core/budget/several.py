"""Several budgets: one key with several limits, such as latency_p50=50%,35%,25%. Each limit gives a budget of its own."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.core.budget.constraint import Constraint
from pipeline.core.budget.read import Limit, read_budget, read_limit
from pipeline.core.profile import BudgetText, Profile
from pipeline.errors import BudgetError

__all__ = ["Budget", "all_constraints", "budget_facts", "limits_in", "read_budgets"]


@dataclass(frozen=True)
class Budget:
    """The limits that one network must meet."""

    constraints: tuple[Constraint, ...]
    key: str = ""
    """The key that has several limits in this run; empty if this is the only budget."""

    @property
    def own(self) -> Constraint | None:
        """The limit in which this budget differs from the others of the run; None if it is the only one."""
        return next((each for each in self.constraints if each.metric.key == self.key), None)

    @property
    def name(self) -> str:
        """A name for files: 'latency_p50-35' for 35 %, 'latency_p50-20ms' for 20 ms. Empty if this is the only budget.

        It follows from `facts`, so it can be told from the journal.
        """
        if self.own is None:
            return ""
        limit = re.sub(r"\.0+(?![0-9])", "", self.facts[self.key])
        return f"{self.key}-{re.sub(r'[^A-Za-z0-9.]+', '', limit)}"

    @property
    def text(self) -> str:
        """The limit in words: 'latency p50 <= 35.0 % of dense'. Empty if this is the only budget."""
        return self.own.text if self.own else ""

    @property
    def facts(self) -> dict[str, str]:
        """Key -> limit, formatted for people."""
        return {each.metric.key: each.show(each.limit) for each in self.constraints}


def read_budgets(profile: Profile, overrides: Mapping[str, BudgetText], own: tuple[Limit, ...] = ()) -> tuple[Budget, ...]:
    """Read the profile's budget, which `overrides` replace key by key. One key may have several limits, with commas between them.

    There is one budget for each of these limits, the largest limit first. All other limits are part of every budget. Raises
    BudgetError as `read_budget` does, and if several keys have several limits, or if the limits cannot be compared.
    """
    texts: dict[str, BudgetText] = {**profile.budget, **overrides}
    several = [key for key, text in texts.items() if "," in str(text)]
    if not several:
        return (Budget(read_budget(profile, overrides, own)),)
    if len(several) > 1:
        raise BudgetError(f"budget: {' and '.join(several)} have several limits each; give several limits to one key only")
    key = several[0]
    parts = limits_in(str(texts[key]))
    limits = [read_limit(key, part) for part in parts]
    if limits[0].metric.after_finetuning:
        raise BudgetError(f"budget: {key}: does not guide the search, so several limits have no effect on it; give one limit")
    if len({limit.relative for limit in limits}) > 1:
        raise BudgetError(f"budget: {key}: got shares of the dense network and other limits ({texts[key]}); give one kind")
    if len({limit.limit for limit in limits}) < len(limits):
        raise BudgetError(f"budget: {key}: a limit is given twice (got {texts[key]}); give each limit once")
    budgets = [Budget(read_budget(profile, {**overrides, key: part}, own), key) for part in parts]
    if len({budget.text for budget in budgets}) < len(budgets):
        raise BudgetError(f"budget: {key}: two limits are too close to tell apart (got {texts[key]}); leave one out")
    return tuple(sorted(budgets, key=lambda budget: -(budget.own.limit if budget.own else 0.0)))


def limits_in(text: str) -> tuple[str, ...]:
    """Return the limits in a text with commas between them."""
    return tuple(part.strip() for part in text.split(","))


def all_constraints(budgets: Iterable[Budget]) -> tuple[Constraint, ...]:
    """Return the constraints of all budgets, each one once."""
    return tuple(dict.fromkeys(constraint for budget in budgets for constraint in budget.constraints))


def budget_facts(budgets: Iterable[Budget]) -> dict[str, str]:
    """Key -> its limits, formatted for people, with commas between them."""
    found: dict[str, dict[str, None]] = {}
    for budget in budgets:
        for key, text in budget.facts.items():
            found.setdefault(key, {})[text] = None
    return {key: ", ".join(texts) for key, texts in found.items()}
