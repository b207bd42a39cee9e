"""LocalProbe: measurements on this machine, by the worker as a child process."""

import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ProbeError
from pipeline.files import sha256_bytes
from pipeline.measurement import Failure, Fingerprint, Measurement, Memory, TimedProcess
from pipeline.probe.base import Effort, Graph, Reference
from pipeline.probe.stability import remarks_on
from pipeline.profile import Profile, available_cores

__all__ = ["LocalProbe"]

TOLERANCE = 1e-3
"""Largest wrong-answer difference that counts as rounding, as a share of the largest output."""
ANSWER_LIMIT = 100_000
"""Outputs with more values than this are not sent back to be compared on every candidate; the final file's always are."""

_HEADER = struct.Struct(">IQ")
_WORKER = Path(__file__).with_name("worker.py")


class LocalProbe:
    """Runs `worker.py` here, under the profile's threads and settings; see `Probe`.

    Where this machine has fewer cores than the profile has threads, those there are run, and the fingerprint says so.
    """

    def __init__(self, profile: Profile, reference: Reference) -> None:
        self._profile = profile
        self._cores = available_cores()[-profile.threads :]
        self._seed = 0
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        with self._closing_on_error():
            self._machine = self._ask({"do": "hello"})
            self._reference = self._put(reference.graph.data)
            self._input = self._put(reference.inputs.tobytes())
        self._shape = list(reference.inputs.shape)
        provider = profile.runtime.execution_provider
        if provider not in self._machine["providers"]:
            self.close()
            raise ProbeError(
                f"onnxruntime {self._machine['onnxruntime']} on this machine has no {provider} "
                f"(it has {', '.join(self._machine['providers'])}); change runtime.execution_provider"
            )

    @property
    def fingerprint(self) -> Fingerprint:
        """Where and how figures are taken."""
        settings = self._settings()
        return Fingerprint(
            mode="device" if self._profile.measures_its_device else "host-emulated",
            device=self._profile.device.name,
            machine=self._machine["cpu"],
            architecture=self._machine["architecture"],
            onnxruntime=self._machine["onnxruntime"],
            threads=len(self._cores),
            profile_threads=self._profile.threads,
            settings=tuple((key, str(settings[key])) for key in sorted(settings)),
        )

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """As many as the profile has threads, or all there are."""
        return tuple(self._cores)

    def measure(self, graph: Graph, effort: Effort) -> Measurement | Failure:
        """See `Probe.measure`. Unstable measurements are repeated; the last one stands, with its remarks."""
        with self._lock:
            for attempt in range(self._profile.probe.retries + 1):
                result = self._measure_once(graph, effort, attempt)
                if isinstance(result, Failure) or not result.remarks:
                    break
            return result

    def _measure_once(self, graph: Graph, effort: Effort, attempt: int) -> Measurement | Failure:
        self._seed += 1
        answer = self._ask(
            {
                "do": "measure",
                "reference": self._reference,
                "input": self._input,
                "shape": self._shape,
                "answer": ANSWER_LIMIT if graph.expected and not attempt else 0,
                "processes": effort.processes,
                "memory": effort.memory,
                "together": not effort.fresh,
                "settings": self._settings(),
                "seed": self._seed,
                "more": True,
            },
            graph.data,
        )
        if "failure" in answer:
            return Failure(*answer["failure"])
        output = answer["processes"][0]["answer"]
        if graph.expected and output is not None:
            difference = _difference(graph.expected(), np.asarray(output, dtype=np.float32))
            if not difference <= TOLERANCE:
                return Failure("wrong-output", f"off by {100 * difference:.3g} % of the largest output")
        timed = tuple(_timed_process(process) for process in answer["processes"])
        memory = answer["memory"] or {}
        return Measurement(
            fingerprint=self.fingerprint,
            structure=graph.structure,
            processes=timed,
            memory=Memory(memory.get("baseline_bytes"), memory.get("session_bytes"), memory.get("peak_bytes")),
            remarks=remarks_on(timed, self._profile.probe.noise_limit, attempt),
        )

    def close(self) -> None:
        """End the worker, also in the middle of a measurement; it removes what it kept."""
        self._process.terminate()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _settings(self) -> dict[str, Any]:
        """What one child is told: the profile's runtime and the probe's patience."""
        runtime, probe = self._profile.runtime, self._profile.probe
        return {
            "provider": runtime.execution_provider,
            "threads": len(self._cores),
            "cores": self._cores,
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
            "timeout_s": probe.timeout_s,
        }

    def _put(self, data: bytes) -> str:
        name = sha256_bytes(data)
        answer = self._ask({"do": "put", "name": name}, data)
        if "failure" in answer:
            raise ProbeError(f"the probe's process on this machine refuses a file: {answer['failure'][1]}")
        return name

    def _ask(self, message: dict[str, Any], blob: bytes = b"") -> dict[str, Any]:
        try:
            answer = _exchange(self._process, message, blob)
        except (OSError, EOFError, ValueError):
            status = self._process.poll()
            raise ProbeError(f"the probe's process on this machine ended (status {status}); run the same command again") from None
        if "failure" in answer and answer["failure"][0] == "not-kept":  # no fault of the model's
            raise ProbeError(
                f"the probe on this machine cannot keep a model: {answer['failure'][1]}; free space in {gettempdir()}, then run "
                "the same command again"
            )
        return answer

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


def _exchange(process: "subprocess.Popen[bytes]", message: dict[str, Any], blob: bytes) -> dict[str, Any]:
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise EOFError
    text = json.dumps(message).encode()
    for part in (_HEADER.pack(len(text), len(blob)), text, blob):
        stdin.write(part)
    stdin.flush()
    header = stdout.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise EOFError
    answer: dict[str, Any] = json.loads(stdout.read(_HEADER.unpack(header)[0]))
    return answer


def _difference(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """max |expected - found| over max |expected|; infinite when the sizes differ."""
    if expected.size != found.size:
        return float("inf")
    return float(np.abs(expected.ravel() - found.ravel()).max() / max(float(np.abs(expected).max()), 1e-6))


def _timed_process(answer: dict[str, Any]) -> TimedProcess:
    return TimedProcess(
        latency_ms=tuple(tuple(round(run, 5) for run in block) for block in answer["latency_ms"]),
        reference_latency_ms=tuple(tuple(round(run, 5) for run in block) for block in answer["reference_latency_ms"]),
        session_creation_ms=round(answer["session_creation_ms"], 3),
        first_run_ms=round(answer["first_run_ms"], 3),
        cpu_ms_per_run=round(answer["cpu_ms_per_run"], 4),
        preemptions=answer["preemptions"],
        timed_ms=round(answer["timed_ms"], 1),
    )
