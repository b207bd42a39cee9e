"""Forecast: how long a run will probably take, as a range."""

from dataclasses import dataclass
from typing import Literal

from pipeline.system.units import format_duration

__all__ = ["Forecast", "ForecastTime"]

ForecastTime = Literal["loaded", "measured"]
"""When a forecast was made: after loading, or before the search, when the dense and the thinnest network were measured."""


@dataclass(frozen=True)
class Forecast:
    """How long the whole run will probably take, from its start to the artifact."""

    made: ForecastTime
    low_s: float
    high_s: float

    @property
    def text(self) -> str:
        """The range in words, for example '2:10 to 6:30'."""
        return f"{format_duration(self.low_s)} to {format_duration(self.high_s)}"
