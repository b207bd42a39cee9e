"""WorkerProbe: measure with a worker at the other end of a connection, which may break and be reopened."""

import copy
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from pipeline.core.device_state import DeviceState, throttled
from pipeline.core.feeds import Feeds, arrays_of
from pipeline.core.measurement import Failure, Fingerprint, Measurement, Memory
from pipeline.core.node_times import NodeTime
from pipeline.core.profile import Profile
from pipeline.core.providers import way_to_install
from pipeline.core.remark import Remark, RemarkKind
from pipeline.errors import ProbeError, ThreadsError
from pipeline.foreign_text import shorten
from pipeline.probe.answers import outputs_difference, timed_process
from pipeline.probe.connection import Connection, Notify
from pipeline.probe.interface import Graph, MeasurementOptions, Reference, Workload
from pipeline.probe.session_settings import session_settings
from pipeline.probe.stability import remarks_on
from pipeline.remote.link import LinkLost

__all__ = ["WORKER", "WorkerProbe"]

WORKER = Path(__file__).with_name("worker.py")
"""The program that measures. It is sent to a device as text."""

ANSWER_LIMIT = 100_000
"""Outputs with more values are not sent back and compared for each candidate. The final file's output is always compared."""
ALLOWED_LOST_CONNECTIONS = 3
"""After this many lost links during one measurement, the file counts as the cause."""
DETAIL_LIMIT = 400
"""Longest detail of a failure in the journal, in characters."""
COOL_POLL_S = 5.0
PROFILED_RUNS = 20
"""Runs with the profiler. The fastest one of each node counts."""

Result = TypeVar("Result")


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
            self._refuse_missing(profile.runtime.execution_provider)
        except BaseException:
            self.close()
            raise

    def with_reference(self, reference: Reference) -> Self:
        """A probe on the same connection that times files against `reference`. Closing one of the two closes both."""
        other = copy.copy(self)
        other._reference = reference
        return other

    def with_runtime(self, provider: str, threads: int, *, allow_fallback: bool) -> Self:
        """A probe on the same connection with another provider and number of threads. Closing one of the two closes both.

        Raises ProbeError and ThreadsError if the machine does not have them.
        """
        self._refuse_missing(provider)
        changes = {"execution_provider": provider, "threads": threads, "allow_fallback": allow_fallback}
        other = copy.copy(self)
        other._profile = self._profile.model_copy(update={"runtime": self._profile.runtime.model_copy(update=changes)})
        other._cores = tuple(other._chosen_cores(self.machine["cores"]))
        return other

    @property
    def profile(self) -> Profile:
        """The profile whose settings are used."""
        return self._profile

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
        return self._while_linked(lambda: self._measure_steadily(graph, options, load or Workload()))

    def node_times(self, graph: Graph, inputs: Feeds | None = None, runs: int = PROFILED_RUNS) -> tuple[NodeTime, ...] | Failure:
        """Return the time and the provider of each node of `graph`, in the order of the first run, from the runtime's profiler.

        The file runs in a process of its own, with the profile's settings, except that nodes may run on other providers. `inputs`
        replaces the reference's. Returns a Failure like `measure`, and raises ProbeError and its subclasses.
        """
        return self._while_linked(lambda: self._node_times(graph, inputs, runs))

    def _while_linked(self, work: Callable[[], Result]) -> Result | Failure:
        """Do `work`. If the link is lost, reopen it and start again."""
        with self._lock:
            lost = 0
            while True:
                try:
                    return work()
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

    def reconnect(self) -> None:
        """Open the lost connection again. Raises ProbeError if the machine stays away, or another machine answers."""
        with self._lock:
            self._connection.reopen(LinkLost("the connection was lost"))

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
        settings = session_settings(self._profile, self._cores, load)
        beside = load.beside or (self._reference.graph if self._reference and load.reference else None)
        reference = self._connection.keep(beside) if beside else None
        answer = self._connection.ask(
            {
                "do": "measure",
                "reference": reference,
                "inputs": self._kept_inputs(load.inputs),
                "slices": self._kept_slices(graph),
                "answer": ANSWER_LIMIT if graph.expected and not attempt else 0,
                "processes": options.processes,
                "memory": options.memory,
                "together": not options.fresh,
                "settings": settings,
                "seed": self._seed,
                "more": options.ahead,
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
            difference = outputs_difference(arrays_of(graph.expected()), np.asarray(output))
            if not difference <= graph.tolerance:
                return Failure("wrong-output", f"off by {100 * difference:.3g} % of the largest output")
        timed = tuple(timed_process(process) for process in answer["processes"])
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

    def _node_times(self, graph: Graph, inputs: Feeds | None, runs: int) -> tuple[NodeTime, ...] | Failure:
        answer = self._connection.ask(
            {
                "do": "profile",
                "inputs": self._kept_inputs(inputs),
                "slices": self._kept_slices(graph),
                "runs": runs,
                "settings": {**session_settings(self._profile, self._cores, Workload()), "allow_fallback": True},
            },
            graph.weight_slices.blob if graph.weight_slices else graph.data,
        )
        if "failure" in answer:
            kind, detail = answer["failure"]
            return Failure(kind, shorten(detail, DETAIL_LIMIT))
        return tuple(NodeTime(name, operator, ms, provider) for name, operator, provider, ms in answer["nodes"])

    def _kept_inputs(self, inputs: Feeds | None) -> list[dict[str, Any]]:
        """The inputs, or else those of the reference, for a request. The worker keeps them."""
        if inputs is None and self._reference is None:
            raise ProbeError("there is no input for the network")
        arrays = arrays_of(inputs if inputs is not None else self._reference.inputs if self._reference else ())
        return [
            {"name": self._connection.keep_bytes(array.tobytes()), "dtype": array.dtype.name, "shape": list(array.shape)}
            for array in arrays
        ]

    def _kept_slices(self, graph: Graph) -> dict[str, Any] | None:
        """The weight slices of `graph` for a request, if it has any. The worker keeps their base."""
        if graph.weight_slices is None:
            return None
        self._connection.keep_base(graph.weight_slices.base)
        return graph.weight_slices.order

    def _refuse_missing(self, provider: str) -> None:
        """Raise ProbeError if the machine does not have `provider`."""
        machine, where = self.machine, self._connection.where
        if provider in machine["providers"]:
            return
        if provider in machine.get("unusable", {}):
            reason = f"cannot use {provider}: {machine['unusable'][provider]}"
        else:
            reason = f"has no {provider} (available: {', '.join(machine['providers'])})"
        unusable = provider in machine.get("unusable", {})
        install = way_to_install(provider, str(machine["cpu"]), machine["architecture"], unusable=unusable)
        raise ProbeError(f"onnxruntime {machine['onnxruntime']} on {where} {reason}; {install}change runtime.execution_provider")

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
        settings = session_settings(self._profile, self._cores, load)
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


def _throttling(measured: Measurement) -> Remark | None:
    return next((remark for remark in measured.remarks if remark.kind == RemarkKind.THROTTLED), None)
