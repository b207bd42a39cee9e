"""Search problems made from recorded plans, so that a search takes seconds on any machine; see `record_plans.py`.

Run: python benchmarks/plan_tables.py resnet20. It prints how far the interpolation is off, and what the score is worth.

Between the recorded plans, latency and score are interpolated: a polynomial of second degree in the kept fractions, and a
Gaussian process for what it leaves. `check` fits both to four fifths of the plans and compares with the rest.
"""

import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from plan_draws import BUDGETS
from plan_lines import FOLDER, Recording, read_recording
from scipy.stats import spearmanr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import PolynomialFeatures

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, SearchSpace

__all__ = ["Fit", "PlanTable", "check", "load_table", "log_odds_of", "noise_of", "table_of", "worth"]

Floats = NDArray[np.float64]
Figure = Callable[[Floats], Floats]

TUNED_ON = 400
"""Number of plans from which the length scales of the Gaussian process are found. All plans are then used."""
SEARCH_NOISE = 0.02
"""Standard deviation of a measured latency ratio in a search. A recording on a busy machine has more."""
HELD_OUT = 5
"""Every fifth plan is held out for the check."""
FLOOR = 0.3
"""Percentage points by which scores are moved away from 0 and 100 before their log odds are taken."""


class Curve:
    """An interpolation of one figure over kept fractions (n, groups)."""

    def __init__(self, kept: Floats, values: Floats) -> None:
        self._terms = PolynomialFeatures(2, include_bias=False).fit(kept)
        self._trend = RidgeCV(np.logspace(-4, 2, 13)).fit(self._terms.transform(kept), values)
        rest = values - self._trend.predict(self._terms.transform(kept))
        self._scale = float(rest.std()) or 1.0
        few = np.random.default_rng(0).permutation(len(kept))[:TUNED_ON]
        kernel = ConstantKernel(0.5) * Matern(np.full(kept.shape[1], 1.0), (0.1, 30.0), nu=1.5) + WhiteKernel(0.3, (1e-3, 2.0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length scale at its bound is a group that hardly matters
            tuned = GaussianProcessRegressor(kernel, random_state=0).fit(kept[few], rest[few] / self._scale).kernel_
        self._rest = GaussianProcessRegressor(tuned, optimizer=None).fit(kept, rest / self._scale)

    def __call__(self, kept: Floats) -> Floats:
        """(m, groups) -> (m,)"""
        smooth = self._trend.predict(self._terms.transform(kept))
        values: Floats = smooth + self._scale * self._rest.predict(kept)
        return values


@dataclass(frozen=True, eq=False)
class PlanTable:
    """Latency and score of every plan of one network."""

    space: SearchSpace
    log_ratio: Figure
    """Kept fractions (n, groups) -> logarithm of the latency ratio (n,)."""
    log_odds: Figure
    """Kept fractions (n, groups) -> log odds of the score (n,)."""
    noise: float
    """Standard deviation of the logarithm of a measured latency ratio."""
    distances: dict[ChannelPlan, float]
    """How far the outputs move when one group alone loses channels; empty if it is not known."""

    def ratios(self, kept: Floats) -> Floats:
        """Kept fractions (n, groups) -> latency as a share of the dense network's (n,), without noise."""
        values: Floats = np.exp(self.log_ratio(kept))
        return values

    def scores(self, kept: Floats) -> Floats:
        """Kept fractions (n, groups) -> score before fine-tuning in percent (n,)."""
        values: Floats = 100 / (1 + np.exp(-self.log_odds(kept)))
        return values

    def kept(self, plan: ChannelPlan) -> Floats:
        """The kept fractions of one plan, (1, groups)."""
        pairs = zip(self.space.widths_in(plan), self.space.choices, strict=True)
        return np.asarray([[width / choice.channels for width, choice in pairs]])

    def evaluations(self, budget: float, seed: int, noise: float | None = None) -> Callable[[ChannelPlan], Evaluation]:
        """A black box for a searcher. `budget` is a share of the dense network's latency.

        As in a run, the violation is that of the upper end of a 95 % interval of a noisy measurement, and a plan that is measured
        again has the same value.
        """
        spread = self.noise if noise is None else noise
        known: dict[ChannelPlan, Evaluation] = {}

        def evaluate(plan: ChannelPlan) -> Evaluation:
            if plan not in known:
                kept = self.kept(plan)
                drawn = np.random.default_rng((seed, zlib.crc32(repr(plan.widths).encode()))).standard_normal()
                upper = float(self.ratios(kept)[0]) * np.exp(spread * (drawn + 1.96))
                known[plan] = Evaluation(plan, float(self.scores(kept)[0]), (float(upper / budget) - 1,))
            return known[plan]

        return evaluate


@dataclass(frozen=True)
class Fit:
    """How far the interpolation is off on plans that it was not fitted to."""

    plans: int
    latency_error: float
    """Median of |predicted / measured - 1|. A single measurement's own noise is part of it."""
    latency_error_90: float
    """Its 90th percentile."""
    noise: float
    """Standard deviation of one recorded measurement."""
    score_error: float
    """Mean of |predicted - measured|, in points."""
    score_rank: float
    """Spearman's rank correlation of predicted and measured scores."""
    near: dict[float, float]
    """The rank correlation among the plans within 10 % of a budget."""


def load_table(network: str, folder: Path = FOLDER) -> PlanTable:
    """The table of a network in `folder`."""
    return table_of(_recorded(network, folder))


def _recorded(network: str, folder: Path) -> Recording:
    recording = read_recording(folder / f"{network}.jsonl.xz")
    if recording is None:
        raise FileNotFoundError(f"{folder / network}.jsonl.xz: not recorded; run benchmarks/record_plans.py {network}")
    return recording


def table_of(recording: Recording, plans: list[dict[str, Any]] | None = None) -> PlanTable:
    """The table of a recording, from all plans or from some of them."""
    space = recording.space
    kept, ratios, scores = _arrays(recording, recording.plans if plans is None else plans)
    log_ratio, log_odds = Curve(kept, np.log(ratios)), Curve(kept, log_odds_of(scores))
    return PlanTable(space, log_ratio, log_odds, SEARCH_NOISE, recording.distances)


def check(recording: Recording) -> Fit:
    """Fit a table to four fifths of the plans, and compare it with the rest."""
    plans = recording.plans
    held = plans[::HELD_OUT]
    table = table_of(recording, [plan for number, plan in enumerate(plans) if number % HELD_OUT])
    kept, ratios, scores = _arrays(recording, held)
    errors, seen = np.abs(table.ratios(kept) / ratios - 1), table.scores(kept)
    near = {}
    for budget in BUDGETS:
        rows = np.abs(ratios / budget - 1) < 0.1
        near[budget] = float(spearmanr(seen[rows], scores[rows]).statistic) if rows.sum() > 9 else float("nan")
    return Fit(
        plans=len(held),
        latency_error=float(np.median(errors)),
        latency_error_90=float(np.quantile(errors, 0.9)),
        noise=noise_of(recording),
        score_error=float(np.abs(seen - scores).mean()),
        score_rank=float(spearmanr(seen, scores).statistic),
        near=near,
    )


def worth(recording: Recording) -> dict[float, float]:
    """Spearman's rank correlation of the score with the accuracy after fine-tuning, of the plans nearest to each budget."""
    plans = {tuple(plan["widths"]): plan for plan in recording.plans}
    tuned = [(plans[tuple(line["widths"])], line["accuracy"]) for line in recording.fine_tuned]
    found = {}
    for budget in BUDGETS:
        near = [
            (plan["score"], accuracy)
            for plan, accuracy in tuned
            if min(BUDGETS, key=lambda each: abs(each - plan["ratio"])) == budget
        ]
        found[budget] = float(spearmanr(*zip(*near, strict=True)).statistic) if len(near) > 9 else float("nan")
    return found


def _arrays(recording: Recording, plans: list[dict[str, Any]]) -> tuple[Floats, Floats, Floats]:
    """Kept fractions (n, groups), latency ratios (n,), the median of all measurements of a plan, and scores (n,)."""
    widths = [tuple(plan["widths"]) for plan in plans]
    kept = np.asarray(widths) / np.asarray([choice.channels for choice in recording.space.choices])
    ratios = np.asarray([np.median(recording.ratios[each]) for each in widths])
    return kept, ratios, np.asarray([plan["score"] for plan in plans], dtype=np.float64)


def log_odds_of(scores: Floats) -> Floats:
    """The log odds of scores in percent, which are kept away from 0 and 100."""
    shares = np.clip(scores, FLOOR, 100 - FLOOR) / 100
    odds: Floats = np.log(shares / (1 - shares))
    return odds


def noise_of(recording: Recording) -> float:
    """The deviation of the logarithm of one measurement, from plans that were measured several times."""
    several = [np.log(found) for found in recording.ratios.values() if len(found) > 1]
    if not several:
        return float(np.median([plan["ratio_error"] / plan["ratio"] for plan in recording.plans]))
    return float(np.sqrt(np.mean([found.var(ddof=1) for found in several])))


@click.command()
@click.argument("network")
def main(network: str) -> None:
    """Print how far the interpolation of NETWORK is off on held-out plans, and what its scores are worth."""
    recording = _recorded(network, FOLDER)
    found = check(recording)
    print(
        f"{found.plans} held-out plans: median latency error {found.latency_error:.1%}, 90 % below {found.latency_error_90:.1%}"
    )
    print(f"one recorded latency deviates by {found.noise:.1%}; scores are off by {found.score_error:.1f} points on average")
    print(f"rank correlation of scores: {found.score_rank:.2f}; {_near(found.near)}")
    print(f"with the accuracy after fine-tuning: {_near(worth(recording))}")


def _near(found: dict[float, float]) -> str:
    return ", ".join(f"{each:.2f} near {budget:.0%}" for budget, each in found.items())


if __name__ == "__main__":
    main()
