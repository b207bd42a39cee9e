"""Lagrange multipliers: how much a violation weighs against the reward, one per constraint."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PIDMultipliers", "PIDSettings"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PIDSettings:
    """Gains of the controller. Its error is a mean violation, as a share of the limit."""

    proportional: float = 10.0
    integral: float = 3.0
    derivative: float = 1.0
    smoothing: float = 0.5
    """Weight of the past in the averages for the proportional and derivative terms."""


class PIDMultipliers:
    """PID multipliers of Stooke et al., arXiv 2007.03964, algorithm 2. A plain Lagrangian multiplier is the integral term alone.
    It
    overshoots and oscillates, like paper A's (softplus, Adam with rate 1), whose tables end 17 to 29 % below the budget.
        I   <- max(0, I + K_I e)
        P   <- smoothed e
        D   <- max(0, smoothed J_C - its last value)
        lam <- max(0, K_P P + I + K_D D)
    """

    def __init__(self, constraints: int, settings: PIDSettings) -> None:
        self._settings = settings
        self._integral = np.zeros(constraints)
        self._smoothed: Floats | None = None
        self.values = np.zeros(constraints)

    def update(self, violations: Floats) -> None:
        """Update from `violations`, one per constraint: the mean over the latest episodes. 0 is exactly on the limit."""
        settings = self._settings
        before = violations if self._smoothed is None else self._smoothed
        self._smoothed = settings.smoothing * before + (1 - settings.smoothing) * violations
        self._integral = np.maximum(0.0, self._integral + settings.integral * violations)
        rising = np.maximum(0.0, self._smoothed - before)
        self.values = np.maximum(0.0, settings.proportional * self._smoothed + self._integral + settings.derivative * rising)
