"""Connection: a link to a worker that is reopened when it breaks, and sends the worker its files again when needed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.core.weight_slices import BaseWeights
from pipeline.errors import CompressError, DeviceBusy, DeviceSoftware, DeviceUnreachable, ProbeError
from pipeline.probe.interface import Graph
from pipeline.probe.protocol import checked
from pipeline.remote.link import Link, LinkLost, Refused, Start
from pipeline.system.files import sha256_bytes

__all__ = ["CRASHING", "Connection", "Notify"]

SILENCE_S = 60.0
"""A busy worker sends a sign of life every few seconds. A worker that is silent for this long has hung."""
HELLO_S = 180.0
"""Time limit of the first request. A small board is slow to import onnxruntime."""
SLOWEST_BYTES_PER_S = 1000
"""A link that is slower than this counts as lost."""
MEASURED_BYTES, OTHER_BYTES = 64 * 2**20, 2**20
"""Largest accepted answers: to a measurement, which contains the latency of every run, or a profile, which contains every node;
and to any other request."""
SAME = ("cpu", "machine", "architecture", "onnxruntime", "system")
"""Facts about the machine that must not change during a run."""
CRASHING = {"1.21.0": "does so on ARM cores before version 8.2, as in a Raspberry Pi 4 and older; 1.22 does not"}
"""Releases of onnxruntime whose import is known to fail with an illegal instruction, and on which processors."""

Notify = Callable[[str], None]
Diagnose = Callable[[LinkLost], CompressError]


class Connection:
    """A connection to one machine. `ask` raises LinkLost when the link breaks; `reopen` opens a new link."""

    def __init__(self, where: str, start: Start, diagnose: Diagnose, patience_s: float, notify: Notify) -> None:
        """`where` names the machine in messages, `diagnose` turns a lost link into an error, `patience_s` limits the waiting."""
        self.where = where
        self._start, self._diagnose, self._patience_s, self._notify = start, diagnose, patience_s, notify
        self._link: Link | None = None
        self._machine: dict[str, Any] = {}
        self._kept: set[str] = set()
        self._traffic_bytes = 0

    @property
    def traffic_bytes(self) -> int:
        """Bytes sent and received so far, over all links."""
        link = self._link
        return self._traffic_bytes + (link.sent_bytes + link.received_bytes if link else 0)

    def open(self) -> dict[str, Any]:
        """Connect, and return facts about the machine. Raises ProbeError if it is unreachable or lacks needed software."""
        try:
            self._machine = self._connect()
        except LinkLost as loss:
            raise self._diagnose(loss) from None
        return self._machine

    def reopen(self, loss: LinkLost) -> None:
        """Wait for the machine and connect again. Raises ProbeError if it stays away or another machine answers."""
        began, pause_s, reported = time.monotonic(), 0.5, False
        while True:
            self.close()
            try:
                machine = self._connect()
                break
            except LinkLost as again:
                loss = again
            except DeviceBusy:
                if time.monotonic() - began > self._patience_s:
                    raise
            if time.monotonic() - began > self._patience_s:
                self.close()
                problem = self._diagnose(loss)
                raise type(problem)(
                    f"{problem}; all finished trials are saved: run the same command again when the device is back"
                )
            if not reported:
                self._notify(f"lost the connection to {self.where} ({loss}); waiting for it for up to {self._patience_s:.0f} s")
                reported = True
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 15.0)
        for key in SAME:
            if machine[key] != self._machine[key]:
                self.close()
                raise DeviceUnreachable(
                    f"{self.where} is now another machine ({key}: {self._machine[key]} before, {machine[key]} now); "
                    "measurements of both cannot be mixed: choose another --out"
                )
        if reported:
            self._notify(f"{self.where} is back after {time.monotonic() - began:.0f} s")

    def ask(self, message: dict[str, Any], blob: bytes = b"", limit_s: float | None = None) -> dict[str, Any]:
        """See `Link.ask`. Raises ProbeError for a failure of the machine. A failure of the file is returned as an answer."""
        if self._link is None:
            raise LinkLost("the connection was closed")
        answer = self._link.ask(
            message,
            blob,
            limit_s or SILENCE_S,
            whole_s=_longest_s(message, len(blob)),
            limit_bytes=MEASURED_BYTES if message["do"] in ("measure", "profile") else OTHER_BYTES,
        )
        answer = checked(answer, message["do"], self.where)
        if "failure" in answer:
            problem = self._fault_of_the_machine(answer, message["do"])
            if problem:
                raise problem
        return answer

    def keep(self, graph: Graph) -> str:
        """Let the worker keep `graph`. Returns its name there."""
        if graph.weight_slices is None:
            return self.keep_bytes(graph.data)
        slices = graph.weight_slices
        self.keep_base(slices.base)
        return self._keep(slices.digest, {"do": "make", "slices": slices.order}, lambda: slices.blob)

    def keep_base(self, base: BaseWeights) -> str:
        """Let the worker keep the base weights; they are sent only once. Returns their name there."""
        return self._keep(base.digest, {"do": "base", "tensors": base.index}, base.data)

    def keep_bytes(self, data: bytes) -> str:
        """Let the worker keep a file. Returns its name there."""
        return self._keep(sha256_bytes(data), {"do": "put"}, lambda: data)

    @property
    def closed(self) -> bool:
        """Whether no link is open."""
        return self._link is None

    def close(self) -> None:
        """Close the link, if one is open."""
        if self._link:
            self._traffic_bytes = self.traffic_bytes
            self._link.close()
            self._link = None
            self._kept = set()

    def _connect(self) -> dict[str, Any]:
        try:
            self._link = self._start()
        except Refused as refusal:
            problem = self._fault_of_the_machine({"failure": (refusal.kind, refusal.detail)}, "hello")
            raise problem or ProbeError(f"{self.where}: {refusal.detail}") from None
        return self.ask({"do": "hello"}, limit_s=HELLO_S)

    def _keep(self, name: str, message: dict[str, Any], blob: Callable[[], bytes]) -> str:
        if name not in self._kept:
            answer = self.ask({**message, "name": name}, blob())
            if "failure" in answer:
                raise ProbeError(f"{self.where}: its worker refused a file: {answer['failure'][1]}")
            self._kept.add(name)
        return name

    def _fault_of_the_machine(self, answer: Mapping[str, Any], asked: str) -> CompressError | None:
        kind, detail = answer["failure"]
        if kind == "not-kept":
            folder = self._machine.get("folder", "its temporary folder")
            return ProbeError(
                f"{self.where}: cannot store a file ({detail}); free some space in {folder}, or set TMPDIR on that machine, "
                "then run the same "
                "command again"
            )
        if kind == "busy":
            return DeviceBusy(f"{self.where}: {detail}; wait until it has finished, or end it on the device")
        if asked == "hello":
            wanted, version = "numpy onnxruntime", answer.get("onnxruntime")
            if kind == "illegal-instruction":
                wanted = "--upgrade onnxruntime"
                known = f", which {CRASHING[version]}" if version in CRASHING else ""
                detail += f" ({version}{known})" if version else ""
            return DeviceSoftware(
                f"{self.where}: {detail}; run on that machine: {answer.get('interpreter', 'python3')} -m pip install {wanted}, "
                "or set device.python to another interpreter"
            )
        return None


def _longest_s(message: Mapping[str, Any], blob_bytes: int) -> float:
    """Time limit of an answer: one hour, plus the limits of all processes, plus the time to send the bytes on a slow link."""
    processes, timeout_s = int(message.get("processes", 0)), float(message.get("settings", {}).get("timeout_s", 0.0))
    return 3600.0 + 2 * (processes + 1) * timeout_s + blob_bytes / SLOWEST_BYTES_PER_S
