"""Latency predictor: predicts latencies on a device from latencies on this machine, with the error of the prediction."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.core.statistics import Estimate
from pipeline.errors import ProbeError
from pipeline.foreign_text import ForeignText
from pipeline.system.foreign_file import JSON_LIMIT_BYTES, read_foreign

__all__ = ["LatencyPredictor", "Point", "predictor_json", "read_predictor"]


@dataclass(frozen=True)
class Point:
    """One plan, measured on both machines."""

    host: float
    """p50 on this machine, divided by the p50 of the dense graph."""
    device: float
    """The same ratio on the device."""


@dataclass(frozen=True)
class LatencyPredictor:
    """Relates latencies relative to the dense graph: log(device) = intercept + slope log(host), fitted to a few plans."""

    host: dict[str, str]
    """Facts of this machine's fingerprint; with other facts the predictor is not valid."""
    device: dict[str, str]
    """Facts of the device's fingerprint."""
    network: str
    """Structure of the dense graph; for another network the predictor is not valid."""
    dense_p50_ms: float
    """p50 of the dense graph on the device."""
    dense_p90_ms: float | None
    points: tuple[Point, ...]
    doubts: tuple[ForeignText, ...] = ()
    """What is doubtful about the measurements behind the points, as sentences for people. Older files have no such entry."""
    depth: bool = False
    """Whether plans without some of their blocks are among the points. Older files have no such entry."""

    @cached_property
    def line(self) -> tuple[float, float]:
        """(intercept, slope) of the least-squares fit."""
        return _fit(self.points)

    @cached_property
    def error(self) -> float:
        """Relative error of a prediction: the largest leave-one-out error, in which each point in turn is predicted from the
        others. It is infinite below four points.
        """
        if len(self.points) < 4:
            return math.inf
        off = []
        for index, point in enumerate(self.points):
            intercept, slope = _fit(self.points[:index] + self.points[index + 1 :])
            off.append(abs(_power(intercept, slope, point.host) / point.device - 1))
        return max(off)

    def relative(self, host: Estimate) -> Estimate:
        """Predict the device's relative latency from this machine's. The interval includes the error of the predictor."""
        intercept, slope = self.line
        value, low, high = (_power(intercept, slope, x) for x in (host.value, host.low, host.high))
        low, high = min(low, high), max(low, high)
        return Estimate(value, low * max(0.0, 1 - self.error), high * (1 + self.error))


def predictor_json(predictor: LatencyPredictor) -> bytes:
    """Return the bytes that `read_predictor` reads."""
    return TypeAdapter(LatencyPredictor).dump_json(predictor, indent=1)


def read_predictor(path: Path) -> LatencyPredictor:
    """Read the file that `calibrate` wrote. Raises ProbeError when it cannot be read or is malformed."""
    try:
        return TypeAdapter(LatencyPredictor).validate_json(read_foreign(path, JSON_LIMIT_BYTES))
    except OSError as problem:
        raise ProbeError(f"{path}: cannot be read ({problem.strerror}); create it with: compress calibrate") from None
    except ValidationError:
        raise ProbeError(f"{path}: not a calibration file; create it with: compress calibrate") from None


def _power(intercept: float, slope: float, host: float) -> float:
    """Return e^intercept host^slope, limited to what a float can hold, because points that coincide can give any slope."""
    return math.exp(min(700.0, max(-700.0, intercept + slope * math.log(max(host, 1e-9)))))


def _fit(points: tuple[Point, ...]) -> tuple[float, float]:
    host = np.log([point.host for point in points])
    device = np.log([point.device for point in points])
    spread = float(((host - host.mean()) ** 2).sum())
    slope = float(((host - host.mean()) * (device - device.mean())).sum()) / spread if spread > 1e-12 else 1.0
    return float(device.mean()) - slope * float(host.mean()), slope
