"""Reads budget texts from a profile and the command line into constraints."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.core.budget.constraint import Constraint
from pipeline.core.budget.metric import Metric
from pipeline.core.budget.metrics import known_metrics
from pipeline.core.profile import BudgetText, Profile
from pipeline.errors import BudgetError
from pipeline.system.units import parse_quantity

__all__ = ["Limit", "read_budget", "read_limit"]


@dataclass(frozen=True)
class Limit:
    """A limit on a metric of your own.

    >>> from pipeline import Limit, Metric
    >>> Limit(Metric.of("size", lambda candidate: candidate.file_size_bytes), 0.5, relative=True).value
    0.5
    """

    metric: Metric
    value: float
    relative: bool = False


def read_budget(profile: Profile, overrides: Mapping[str, BudgetText], own: tuple[Limit, ...] = ()) -> tuple[Constraint, ...]:
    """Read the profile's budget, which `overrides` replace key by key, and add the user's `own` limits.

    Raises BudgetError for an unknown key, a wrong unit, no limit that requires a smaller or faster network, or an absolute
    time or memory limit where this run does not measure the device.
    """
    texts: dict[str, BudgetText] = {**profile.budget, **overrides}
    constraints = [read_limit(key, text) for key, text in texts.items()]
    constraints += [Constraint(limit.metric, limit.value, limit.relative) for limit in own]
    for constraint in constraints:
        _refuse_figures_of_another_machine(constraint, profile)
    if all(constraint.metric.after_finetuning for constraint in constraints):
        raise BudgetError(
            f"the budget for {profile.device.name} does not limit the network's size or speed"
            f"{' (only ' + ', '.join(texts) + ')' if texts else ''}; add a limit, for example --budget latency_p50=50%"
        )
    return tuple(constraints)


def read_limit(key: str, text: BudgetText) -> Constraint:
    """Read the limit `text` of the metric `key`. Raises BudgetError for an unknown key or a wrong unit."""
    metric = known_metrics().get(key)
    if metric is None:
        raise BudgetError(f"budget: unknown key '{key}'; choose from {', '.join(sorted(known_metrics()))}")
    plain = str(text).strip()
    if not plain.endswith("%"):
        try:
            limit = parse_quantity(text, metric.unit)
        except ValueError as problem:
            raise BudgetError(f"budget: {key}: {problem}{' or 50 %' if metric.relative else ''}") from None
        if limit <= 0 and not metric.after_finetuning:
            raise BudgetError(f"budget: {key}: must be above zero (got {text!r}); write for example {key}=50%")
        return Constraint(metric, limit, relative=False)
    if metric.relative is None:
        raise BudgetError(f"budget: {key}: expected {metric.unit}, not % (got {text!r}); write for example {key}=1.0")
    try:
        share = parse_quantity(plain[:-1], "points") / 100
    except ValueError:
        raise BudgetError(f"budget: {key}: expected a percentage (got {text!r}); write for example {key}=50%") from None
    if share <= 0:
        raise BudgetError(f"budget: {key}: must be above 0 % (got {text!r})")
    return Constraint(metric, share, relative=True)


def _refuse_figures_of_another_machine(constraint: Constraint, profile: Profile) -> None:
    if constraint.metric.measured and not constraint.relative and not profile.measures_its_device:
        raise BudgetError(
            f"budget: {constraint.text} needs a measurement on {profile.device.name}, but this run measures on this machine; "
            f"set device.host in the profile, or use a relative limit ({constraint.metric.key}=50%), or use --target local if "
            "this machine is the target"
        )
