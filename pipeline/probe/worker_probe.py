"""WorkerProbe: measure with a worker at the other end of a connection, which may break and be reopened."""

import copy
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.core.device_state import DeviceState, throttled
from pipeline.core.feeds import Arrays, arrays_of, output_difference
from pipeline.core.measurement import Failure, Fingerprint, Measurement, Memory, TimedProcess
from pipeline.core.profile import Profile
from pipeline.core.remark import Remark, RemarkKind
from pipeline.errors import ProbeError, ThreadsError
from pipeline.foreign_text import shorten
from pipeline.probe.connection import Connection, Notify
from pipeline.probe.interface import Graph, MeasurementOptions, Reference, Workload
from pipeline.probe.stability import remarks_on
from pipeline.remote.link import LinkLost

__all__ = ["WORKER", "WorkerProbe"]

WORKER = Path(__file__).with_name("worker.py")
"""The program that measures. It is sent to a device as text."""

TOLERANCE = 1e-3
"""Largest difference of outputs that counts as rounding, as a share of the largest output."""
ANSWER_LIMIT = 100_000
"""Outputs with more values are not sent back and compared for each candidate. The final file's output is always compared."""
ALLOWED_LOST_CONNECTIONS = 3
"""After this many lost links during one measurement, the file counts as the cause."""
DETAIL_LIMIT = 400
"""Longest detail of a failure in the journal, in characters."""
COOL_POLL_S = 5.0


class WorkerProbe:
    """See `Probe`. Subclasses define how the worker is started and what a lost link means."""

    def __init__(self, profile: Profile, reference: Reference | None, connection: Connection, notify: Notify) -> None:
        """Raises ProbeError or ThreadsError when no measurement is possible at the other end of `connection`."""
        self._profile, self._reference, self._connection, self._notify = profile, reference, connection, notify
        self._seed = 0
        self._lock = threading.Lock()
        try:
            self.machine = connection.open()
            self._cores = tuple(self._chosen_cores(self.machine["cores"]))
            provider = profile.runtime.execution_provider
            if provider not in self.machine["providers"]:
                raise ProbeError(
                    f"onnxruntime {self.machine['onnxruntime']} on {connection.where} has no {provider} "
                    f"(available: {', '.join(self.machine['providers'])}); change runtime.execution_provider"
                )
        except BaseException:
            self.close()
            raise

    def with_reference(self, reference: Reference) -> Self:
        """A probe on the same connection that times files against `reference`. Closing one of the two closes both."""
        other = copy.copy(self)
        other._reference = reference
        return other

    @property
    def closed(self) -> bool:
        """Whether the connection was closed. The probe of another connection must then be used."""
        return self._connection.closed

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Probe.fingerprint`."""
        return self._fingerprint(Workload())

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """See `Probe.busy_cores`."""
        return self._cores

    @property
    def traffic_bytes(self) -> int:
        """Bytes sent and received so far."""
        return self._connection.traffic_bytes

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """See `Probe.measure`. A measurement with remarks is repeated, after a pause to cool down if the device throttled. The
        last one is returned with its remarks. If the link is lost, it is reopened and the measurement starts again.
        """
        with self._lock:
            lost = 0
            while True:
                try:
                    return self._measure_steadily(graph, options, load or Workload())
                except LinkLost as loss:
                    lost += 1
                    self._connection.reopen(loss)
                    if lost == ALLOWED_LOST_CONNECTIONS:
                        message = (
                            f"the connection to {self._connection.where} was lost {lost} times during this measurement: {loss}"
                        )
                        return Failure("lost", shorten(message, DETAIL_LIMIT))

    def condition(self) -> DeviceState:
        """Return the present state of the machine. Raises LinkLost."""
        return DeviceState(**self._connection.ask({"do": "state"}))

    def close(self) -> None:
        """End the worker, even during a measurement. The worker deletes its files."""
        self._connection.close()

    def _measure_steadily(self, graph: Graph, options: MeasurementOptions, load: Workload) -> Measurement | Failure:
        for attempt in range(self._profile.probe.retries + 1):
            result = self._measure_once(graph, options, load, attempt)
            if isinstance(result, Failure) or not result.remarks:
                break
            if _throttling(result) and attempt < self._profile.probe.retries:
                self._cool_down(result)
        return result

    def _measure_once(self, graph: Graph, options: MeasurementOptions, load: Workload, attempt: int) -> Measurement | Failure:
        self._seed += 1
        settings = self._settings(load)
        beside = load.beside or (self._reference.graph if self._reference and load.reference else None)
        reference = self._connection.keep(beside) if beside else None
        if graph.weight_slices:
            self._connection.keep_base(graph.weight_slices.base)
        inputs = load.inputs if load.inputs is not None else self._reference.inputs if self._reference else None
        if inputs is None:
            raise ProbeError("there is no input for the network")
        answer = self._connection.ask(
            {
                "do": "measure",
                "reference": reference,
                "inputs": [
                    {
                        "name": self._connection.keep_bytes(array.tobytes()),
                        "dtype": array.dtype.name,
                        "shape": list(array.shape),
                    }
                    for array in arrays_of(inputs)
                ],
                "slices": graph.weight_slices.order if graph.weight_slices else None,
                "answer": ANSWER_LIMIT if graph.expected and not attempt else 0,
                "processes": options.processes,
                "memory": options.memory,
                "together": not options.fresh,
                "settings": settings,
                "seed": self._seed,
                "more": True,
            },
            graph.weight_slices.blob if graph.weight_slices else graph.data,
        )
        if "failure" in answer:
            kind, detail = answer["failure"]
            return Failure(kind, shorten(detail, DETAIL_LIMIT))
        if (count := len(answer["processes"])) != options.processes:
            raise ProbeError(
                f"{self._connection.where}: timed {count} processes instead of {options.processes}; check that device.host is "
                "the right machine"
            )
        output = answer["processes"][0]["answer"]
        if graph.expected and output is not None:
            difference = _difference(arrays_of(graph.expected()), np.asarray(output))
            if not difference <= TOLERANCE:
                return Failure("wrong-output", f"off by {100 * difference:.3g} % of the largest output")
        timed = tuple(_timed_process(process) for process in answer["processes"])
        memory = answer["memory"] or {}
        before, after = DeviceState(**answer["before"]), DeviceState(**answer["after"])
        fingerprint = self._fingerprint(load)
        remarks = remarks_on(timed, fingerprint, self._profile.probe.noise_limit, before, after)
        if remarks and attempt:
            remarks += (Remark(RemarkKind.REPEATED, f"measurement repeated {attempt} time{'s' if attempt > 1 else ''}"),)
        return Measurement(
            fingerprint=fingerprint,
            structure=graph.structure,
            processes=timed,
            memory=Memory(*(memory.get(key) for key in ("baseline_bytes", "session_bytes", "peak_bytes", "rss_bytes"))),
            remarks=remarks,
            before=before,
            after=after,
        )

    def _cool_down(self, measured: Measurement) -> None:
        """Wait until the machine no longer throttles and is 5 degrees cooler than after the runs, for at most `cooldown_s`."""
        limit_s, began = self._profile.probe.cooldown_s, time.monotonic()
        hot = measured.after.temperature_c if measured.after else None
        where = self._connection.where
        self._notify(f"{where}: {_throttling(measured)}; measured again after a pause of up to {limit_s:.0f} s")
        while (waited := time.monotonic() - began) < limit_s:
            time.sleep(min(COOL_POLL_S, limit_s - waited))
            now = self.condition()
            if throttled(now, now) is None and (hot is None or now.temperature_c is None or now.temperature_c <= hot - 5):
                return

    def _chosen_cores(self, available: list[int]) -> list[int]:
        """One core per thread of the profile, with the highest numbers. This machine may have fewer, a device may not."""
        threads = self._profile.threads
        if self._profile.device.host is not None and threads > len(available):
            raise ThreadsError(
                f"runtime.threads is {threads}, but this user may use only {len(available)} cores of {self._connection.where}; "
                f"write threads: {len(available)} or less"
            )
        return available[-threads:]

    def _fingerprint(self, load: Workload) -> Fingerprint:
        settings = self._settings(load)
        return Fingerprint(
            mode="device" if self._profile.measures_its_device else "host-emulated",
            device=self._profile.device.name,
            machine=self.machine["cpu"],
            architecture=self.machine["architecture"],
            onnxruntime=self.machine["onnxruntime"],
            threads=len(self._cores),
            profile_threads=self._profile.threads,
            settings=tuple((key, str(settings[key])) for key in sorted(settings)),
            identity=self.machine["machine"],
            system=self.machine["system"],
            wheel=self.machine.get("wheel"),
        )

    def _settings(self, load: Workload) -> dict[str, Any]:
        """Settings of one measuring process: the profile's runtime options, numbers of runs and time limits."""
        runtime, probe = self._profile.runtime, self._profile.probe
        return {
            "provider": runtime.execution_provider,
            "threads": len(self._cores),
            "cores": list(self._cores),
            "graph_optimization": runtime.graph_optimization,
            "spinning": runtime.spinning,
            "arena": runtime.arena,
            "memory_pattern": runtime.memory_pattern,
            "prepacking": runtime.prepacking,
            "blocked_layout": runtime.blocked_layout,
            "denormal_as_zero": runtime.denormal_as_zero,
            "warmup_runs": probe.warmup_runs,
            "runs": probe.runs,
            "block_runs": probe.block_runs,
            "time_limit_s": probe.time_limit_s,
            "timeout_s": probe.timeout_s + load.sustain_s,
            "period_ms": load.period_ms,
            "sustain_s": load.sustain_s,
        }


def _throttling(measured: Measurement) -> Remark | None:
    return next((remark for remark in measured.remarks if remark.kind == RemarkKind.THROTTLED), None)


def _difference(expected: Arrays, found: NDArray[np.float64]) -> float:
    """The largest max |expected - found| / max |expected| of all outputs; infinite when the sizes differ. `found` has the values
    of all outputs, one output after the other.
    """
    if sum(each.size for each in expected) != found.size:
        return float("inf")
    parts = np.split(found, np.cumsum([each.size for each in expected[:-1]]))
    found_of = (output_difference(one.ravel(), other, 1e-6) for one, other in zip(expected, parts, strict=True))
    return float(np.max([0.0, *found_of]))  # the built-in max may skip NaN


def _timed_process(answer: dict[str, Any]) -> TimedProcess:
    return TimedProcess(
        latency_ms=_rounded(answer["latency_ms"]),
        reference_latency_ms=_rounded(answer["reference_latency_ms"]),
        session_creation_ms=round(answer["session_creation_ms"], 3),
        first_run_ms=round(answer["first_run_ms"], 3),
        cpu_ms_per_run=round(answer["cpu_ms_per_run"], 4),
        preemptions=answer["preemptions"],
        timed_ms=round(answer["timed_ms"], 1),
        course=tuple((seconds, temperature) for seconds, temperature in answer["course"]),
        lost_ms=_rounded(answer.get("lost_ms", ()), 3),
        reference_lost_ms=_rounded(answer.get("reference_lost_ms", ()), 3),
        foreign_ms=answer.get("foreign_ms"),
        stolen_ms=answer.get("stolen_ms"),
    )


def _rounded(blocks: Sequence[Sequence[float]], digits: int = 5) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(each, digits) for each in block) for block in blocks)
