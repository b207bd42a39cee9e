"""Calibration: from latencies under a profile on this machine to those on its device, with the error of doing so."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.core.statistics import Estimate
from pipeline.errors import ProbeError
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["LatencyPredictor", "Point", "predictor_json", "read_predictor"]


@dataclass(frozen=True)
class Point:
    """One plan, measured on both."""

    host: float
    """p50 over the dense graph's, on this machine."""
    device: float
    """The same on the device."""


@dataclass(frozen=True)
class LatencyPredictor:
    """log(device) = intercept + slope log(host), of latencies over the dense graph's, fitted to a handful of plans."""

    host: dict[str, str]
    """Facts of this machine's fingerprint; under others the map says nothing."""
    device: dict[str, str]
    """Facts of the device's."""
    network: str
    """Structure of the dense graph; of another network the map says nothing either."""
    dense_p50_ms: float
    """On the device."""
    dense_p90_ms: float | None
    points: tuple[Point, ...]

    @cached_property
    def line(self) -> tuple[float, float]:
        """(intercept, slope), by least squares."""
        return _fit(self.points)

    @cached_property
    def error(self) -> float:
        """How far a prediction is off, as a share of it: the largest one seen when each point in turn is left out and
        predicted from the others. Infinite below four points.
        """
        if len(self.points) < 4:
            return math.inf
        off = []
        for index, point in enumerate(self.points):
            intercept, slope = _fit(self.points[:index] + self.points[index + 1 :])
            off.append(abs(_power(intercept, slope, point.host) / point.device - 1))
        return max(off)

    def relative(self, host: Estimate) -> Estimate:
        """The device's latency over dense, from this machine's: its interval and the map's own error together."""
        intercept, slope = self.line
        value, low, high = (_power(intercept, slope, x) for x in (host.value, host.low, host.high))
        low, high = min(low, high), max(low, high)
        return Estimate(value, low * max(0.0, 1 - self.error), high * (1 + self.error))


def predictor_json(predictor: LatencyPredictor) -> bytes:
    """The bytes that `read_predictor` reads."""
    return TypeAdapter(LatencyPredictor).dump_json(predictor, indent=1)


def read_predictor(path: Path) -> LatencyPredictor:
    """What `calibrate` wrote. Raises ProbeError."""
    try:
        return TypeAdapter(LatencyPredictor).validate_json(read_foreign(path, JSON_LIMIT_BYTES))
    except OSError as problem:
        raise ProbeError(f"{path}: cannot be read ({problem.strerror}); make it with: compress calibrate") from None
    except ValidationError:
        raise ProbeError(f"{path}: not a calibration; make it with: compress calibrate") from None


def _power(intercept: float, slope: float, host: float) -> float:
    """e^intercept host^slope, within what a float can hold: points that lie on top of each other give any slope."""
    return math.exp(min(700.0, max(-700.0, intercept + slope * math.log(max(host, 1e-9)))))


def _fit(points: tuple[Point, ...]) -> tuple[float, float]:
    host = np.log([point.host for point in points])
    device = np.log([point.device for point in points])
    spread = float(((host - host.mean()) ** 2).sum())
    slope = float(((host - host.mean()) * (device - device.mean())).sum()) / spread if spread > 1e-12 else 1.0
    return float(device.mean()) - slope * float(host.mean()), slope
