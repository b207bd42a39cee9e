"""CalibratedProbe: measure on this machine, and predict the latencies of the device."""

from dataclasses import replace

from pipeline.core.latency_predictor import LatencyPredictor
from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.errors import ProbeError
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Reference, Workload

__all__ = ["CalibratedProbe"]


class CalibratedProbe:
    """Wraps a probe of this machine; see `Probe`. Intervals of the predicted latencies include the predictor's error."""

    def __init__(self, probe: Probe, reference: Reference, calibration: LatencyPredictor) -> None:
        """Raises ProbeError when the predictor was made on another machine, or for another runtime, setting or network."""
        self._probe, self._calibration = probe, calibration
        current = probe.fingerprint.facts
        for key, value in calibration.host.items():
            if current.get(key) != value:
                probe.close()
                raise ProbeError(
                    f"the calibration was made with another {key} ({value} then, {current.get(key)} now) and is not valid here; "
                    "run compress calibrate again"
                )
        if calibration.network != reference.graph.structure:
            probe.close()
            raise ProbeError("the calibration was made for another network; run compress calibrate again")

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the wrapped probe, with mode "predicted" and the predictor's error."""
        return replace(self._probe.fingerprint, mode="predicted", error=round(self._calibration.error, 4))

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """See `Probe.busy_cores`."""
        return self._probe.busy_cores

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """See `Probe.measure`."""
        found = self._probe.measure(graph, options, load)
        if isinstance(found, Failure):
            return found
        return replace(found, fingerprint=self.fingerprint, calibration=self._calibration)

    def close(self) -> None:
        """Close the wrapped probe."""
        self._probe.close()
