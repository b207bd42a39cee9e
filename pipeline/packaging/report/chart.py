"""Chart: points and lines as data for the page's templates, which draw them at any width and in two colour schemes.

All places are in percent of the plot: x from the left, y from the top. So a plot is as wide as the page, and its text keeps its
size.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.foreign_text import clean_text

__all__ = ["LABEL_LIMIT", "Axis", "Chart", "Line", "Point", "Tip", "axis_of", "drawable", "in_plot", "spread_evenly"]

LABEL_LIMIT = 60
"""Longest label, in characters."""
LARGEST = 1e15
"""Figures beyond this are not drawn. No latency, count or score is so large."""
STEPS = (1.0, 2.0, 5.0, 10.0)

Tip = tuple[tuple[str, str], ...]
"""What a point shows when it is pointed at or focused: (title, text) of each row. The first row is the heading."""


@dataclass(frozen=True)
class Axis:
    """One axis with its ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    """(value, text)"""

    def share(self, value: float) -> float:
        """Where `value` lies, in percent of the axis from its low end."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Point:
    """A dot. With a `tip`, it can be pointed at and focused."""

    x: float
    y: float
    kind: str
    """CSS classes, which are listed in base.html."""
    tip: Tip = ()
    letter: str = ""
    """A letter inside, which names a run."""


@dataclass(frozen=True)
class Line:
    """A straight line."""

    x1: float
    y1: float
    x2: float
    y2: float
    kind: str


@dataclass(frozen=True)
class Chart:
    """One plot."""

    name: str
    title: str
    """What it shows, for people who cannot see it."""
    x: Axis
    y: Axis
    points: tuple[Point, ...] = ()
    lines: tuple[Line, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()
    """(CSS classes, text)"""
    height: int = 260
    """In CSS pixels."""


def axis_of(label: str, values: Iterable[float], *, from_zero: bool = False, room: float = 0.06, most: int = 5) -> Axis:
    """Return an axis that holds all `values` that can be drawn, with at most `most` + 1 round ticks.

    from_zero: whether the axis starts at 0. room: share of the range that stays free at both ends.
    """
    known = [value for value in values if drawable(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if from_zero:
        low = min(0.0, low)
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - max(abs(low) / 10, 0.5) * (not from_zero), high + max(abs(high) / 10, 0.5)
    free = room * (high - low)
    low, high = (low if from_zero else low - free), high + free
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in STEPS if factor * power >= raw * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((number * step, f"{number * step:,.{digits}f}") for number in range(first, last + 1))
    return Axis(clean_text(label, 200), low, high, ticks)


def drawable(value: float) -> bool:
    """Whether `value` is a number that a plot can hold."""
    return math.isfinite(value) and abs(value) < LARGEST


def in_plot(values: Sequence[float]) -> bool:
    """Whether all `values` can be drawn."""
    return all(map(drawable, values))


def spread_evenly(values: Sequence[float], most: int) -> list[float]:
    """Return at most `most` of the `values`, at equal distances."""
    if len(values) <= most:
        return list(values)
    return [values[index * len(values) // most] for index in range(most)]
