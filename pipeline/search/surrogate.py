"""Surrogate: Gaussian processes that predict the evaluation of a plan from the evaluations so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.core.plan import ChannelPlan
from pipeline.search.problem import Evaluation, SearchSpace

__all__ = ["Curve", "Prediction", "Surrogate", "fit", "fractions", "snap", "without_contents"]

Floats = NDArray[np.float64]

REMEMBERED = 250
"""The number of latest evaluations that a surrogate is fitted to. The cost of fitting grows with its cube."""


@dataclass(frozen=True)
class _Kernel:
    """Similarity of two plans: a linear term and a smooth term per group, and a term for all groups together."""

    linear: float
    additive: float
    joint: float
    additive_length: float
    joint_length: float
    noise: float


_LENGTHS = (0.1, 0.3, 0.8)
"""Length scales of the smooth term per group. The shortest follows costs that change in steps."""
_MIXES = ((1.0, 1.0, 0.0), (1.0, 0.3, 0.3), (1.0, 0.03, 0.3), (1.0, 0.3, 0.03))
_JOINT_LENGTHS = (0.5, 1.2)
_NOISES = (1e-6, 1e-4, 1e-2)
_KERNELS = tuple(
    _Kernel(*mix, length, joint, noise)
    for mix, length, noise in product(_MIXES, _LENGTHS, _NOISES)
    for joint in (_JOINT_LENGTHS if mix[2] else _JOINT_LENGTHS[:1])
)


@dataclass(frozen=True)
class Prediction:
    """Predictions for n plans."""

    score: Floats
    """(n,)"""
    score_error: Floats
    """(n,): one standard deviation."""
    violations: Floats
    """(n, constraints)"""
    violation_errors: Floats


class Curve:
    """A Gaussian process over kept fractions (n, groups). The kernel of a fixed list with the highest likelihood is used.

    k(x, x') = s^2 [ a_1 mean_g (x_g - 1)(x'_g - 1) + a_2 mean_g r(x_g - x'_g) + a_3 exp(-|x - x'|^2 / 2 l^2 G) ]
    (Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, algorithm 2.1 and section 5.4.1; s^2
    maximises the likelihood of each kernel.)
    """

    def __init__(self, inputs: Floats, targets: Floats, *, additive: bool = False) -> None:
        self._inputs = inputs
        self._mean, self._scale = float(targets.mean()), float(targets.std()) or 1.0
        y = (targets - self._mean) / self._scale
        slopes = _slopes(inputs, inputs)
        curves = {length: _curves(inputs, inputs, length) for length in _LENGTHS}
        joints = {length: _joint(inputs, inputs, length) for length in _JOINT_LENGTHS}
        best = -math.inf
        for kernel in _KERNELS:
            if additive and kernel.joint:
                continue
            gram = kernel.linear * slopes + kernel.additive * curves[kernel.additive_length]
            gram += kernel.joint * joints[kernel.joint_length] + np.ones_like(gram)
            gram[np.diag_indices_from(gram)] += kernel.noise
            factor = np.linalg.cholesky(gram + 1e-9 * np.eye(len(gram)))
            half = np.linalg.solve(factor, y)
            variance = max(float(half @ half) / len(y), 1e-12)
            likelihood = -0.5 * len(y) * math.log(variance) - float(np.log(np.diag(factor)).sum())
            if likelihood > best:
                best, self._kernel, self._inverse = likelihood, kernel, np.linalg.inv(factor)
                self._weights, self._variance = self._inverse.T @ half, variance

    def __call__(self, inputs: Floats) -> tuple[Floats, Floats]:
        """(m, groups) -> mean (m,), standard deviation (m,)."""
        kernel = self._kernel
        cross = kernel.linear * _slopes(inputs, self._inputs) + 1
        cross += kernel.additive * _curves(inputs, self._inputs, kernel.additive_length)
        own = kernel.linear * np.square(inputs - 1).mean(1) + kernel.additive + kernel.joint + 1
        if kernel.joint:
            cross += kernel.joint * _joint(inputs, self._inputs, kernel.joint_length)
        explained = np.square(cross @ self._inverse.T).sum(1)
        error = np.sqrt(np.maximum(self._variance * (own - explained), 0.0))
        return self._mean + self._scale * (cross @ self._weights), self._scale * error

    @property
    def constant(self) -> float:
        """The constant term of an additive curve."""
        return self._mean + self._scale * float(self._weights.sum())

    def parts(self, group: int, fractions: Floats) -> Floats:
        """The contribution of `group` at `fractions` (m,), without `constant`; exact for an additive curve."""
        kernel, seen = self._kernel, self._inputs[:, group]
        cross = kernel.linear * np.outer(fractions - 1, seen - 1)
        cross += kernel.additive * _alike(fractions[:, None] - seen[None], kernel.additive_length)
        part: Floats = self._scale * (cross @ self._weights) / self._inputs.shape[1]
        return part


@dataclass(frozen=True)
class Surrogate:
    """One Gaussian process for the score and one per constraint violation."""

    space: SearchSpace
    score: Curve
    violations: tuple[Curve, ...]

    def predict(self, kept: Floats) -> Prediction:
        """Predicted evaluations of n plans, given as kept fractions (n, groups)."""
        score, score_error = self.score(kept)
        pairs = [curve(kept) for curve in self.violations]
        empty = np.zeros((len(kept), 0))
        violations = np.stack([mean for mean, _ in pairs], axis=1) if pairs else empty
        errors = np.stack([error for _, error in pairs], axis=1) if pairs else empty
        return Prediction(score, score_error, violations, errors)

    @cached_property
    def tables(self) -> list[tuple[Floats, Floats]]:
        """Per group: what a width adds to the score (widths,) and the violations (widths, constraints), up to a constant."""
        tables = []
        for group, choice in enumerate(self.space.choices):
            fractions = np.asarray(choice.widths) / choice.channels
            costs = [curve.parts(group, fractions) for curve in self.violations]
            tables.append((self.score.parts(group, fractions), np.stack(costs, 1) if costs else np.zeros((len(fractions), 0))))
        return tables


def fit(space: SearchSpace, answers: Sequence[Evaluation], *, additive: bool = False) -> Surrogate:
    """A surrogate fitted to `answers`, at least one. `additive`: without the term for all groups together."""
    answers = answers[-REMEMBERED:]
    kept = np.stack([fractions(space, answer.plan) for answer in answers])
    violations = np.asarray([answer.violations for answer in answers], dtype=np.float64).reshape(
        len(answers), len(answers[0].violations)
    )
    score = Curve(kept, np.asarray([answer.score for answer in answers], dtype=np.float64), additive=additive)
    return Surrogate(space, score, tuple(Curve(kept, column, additive=additive) for column in violations.T))


def fractions(space: SearchSpace, plan: ChannelPlan) -> Floats:
    """The kept fraction of each group, (groups,). A dropped block has 0, and what is inside it has 1."""
    pairs = zip(space.widths_in(plan), space.choices, strict=True)
    return np.asarray([width / choice.channels for width, choice in pairs], dtype=np.float64)


def snap(space: SearchSpace, fractions: Floats) -> Floats:
    """The allowed fractions nearest to `fractions`, (n, groups) -> (n, groups). Ties go to the wider one, as in `plan`.

    What is inside a dropped block has 1.
    """
    kept = np.empty_like(fractions)
    for group, choice in enumerate(space.choices):
        widths = np.asarray(choice.widths[::-1])
        nearest = np.abs(widths[None] - fractions[:, group, None] * choice.channels).argmin(1)
        kept[:, group] = widths[nearest] / choice.channels
    return without_contents(space, kept)


def without_contents(space: SearchSpace, kept: Floats) -> Floats:
    """`kept` (n, groups) with 1 for all that is inside dropped blocks, as in `fractions`."""
    for number, choice in enumerate(space.choices):
        if choice.is_block:
            inside = kept[:, number + 1 : number + 1 + len(choice.contents)]
            inside[kept[:, number] == 0] = 1.0
    return kept


def _slopes(left: Floats, right: Floats) -> Floats:
    product: Floats = (left - 1) @ (right - 1).T / left.shape[1]
    return product


def _curves(left: Floats, right: Floats, length: float) -> Floats:
    total: Floats = np.zeros((len(left), len(right)))
    for group in range(left.shape[1]):  # one group at a time: all at once would not fit the cache
        total += _alike(left[:, None, group] - right[None, :, group], length)
    total /= left.shape[1]
    return total


def _alike(difference: Floats, length: float) -> Floats:
    if length == _LENGTHS[0]:
        rough: Floats = np.exp(-np.abs(difference) / length)
        return rough
    smooth: Floats = np.exp(-0.5 * np.square(difference / length))
    return smooth


def _joint(left: Floats, right: Floats, length: float) -> Floats:
    squares = np.square(left).sum(1)[:, None] + np.square(right).sum(1)[None] - 2 * left @ right.T
    near: Floats = np.exp(-0.5 * np.maximum(squares, 0.0) / (length**2 * left.shape[1]))
    return near
