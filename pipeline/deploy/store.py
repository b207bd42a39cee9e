"""Store: the connection to the agent on a device. Every failure there is raised here as one of our errors."""

import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pipeline.core.profile import Profile
from pipeline.deploy.protocol import StoreStatus, checked
from pipeline.errors import (
    CompressError,
    DeliveryError,
    DeviceBusy,
    DeviceStorage,
    DeviceUnreachable,
    NoPrevious,
    OlderVersion,
    RolledBack,
    TransferCorrupt,
    Unhealthy,
)
from pipeline.remote.diagnosis import diagnosis
from pipeline.remote.link import Link, LinkLost, Refused, ssh_link

__all__ = ["Store", "Timeouts"]

AGENT = Path(__file__).with_name("agent.py")
KEPT = "the received data is kept: run the same command again"
SAFE = "the old release stays active"
ANSWER_BYTES = 2**20
"""Largest size of a valid answer."""
SLOWEST_BYTES_PER_S = 1000
"""A slower link counts as lost."""
ERRORS: dict[str, tuple[type[CompressError], str]] = {
    "busy": (DeviceBusy, "wait until it has finished"),
    "storage": (DeviceStorage, f"{SAFE}; free some space or make it writable, then run the same command again"),
    "not-kept": (DeviceStorage, "free some space there, then run the same command again"),
    "corrupt": (TransferCorrupt, f"{SAFE}; run the same command again, and check the disk if it happens twice"),
    "refused": (DeliveryError, SAFE),
    "older": (OlderVersion, "to return to the previous release, use `compress rollback`"),
    "unhealthy": (Unhealthy, SAFE),
    "rolled-back": (RolledBack, f"{SAFE}; run the same command again"),
    "no-previous": (NoPrevious, "ship an artifact first"),
}


Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Timeouts:
    """How long to wait, in seconds."""

    silence_s: float = 60.0
    """Longest time without progress, on either side. A working agent reports every two seconds."""
    health_s: float = 300.0
    """Time for a release to load, answer and be timed."""
    commit_s: float = 120.0
    """Time from the switch to the commit. After that the device rolls back by itself."""
    whole_s: float = 3600.0
    """Time for the whole conversation, plus the time that its bytes take on the slowest link."""


class Store:
    """A connection to the store of a profile's device. It must be closed. The agent there ends with it."""

    def __init__(self, profile: Profile, timeouts: Timeouts, *, write: bool, make: bool = False) -> None:
        """Start the agent and open the store of the profile's device.

        write: lock the store for this connection, and recover what a power cut left half done. Without it, nothing on the device
        is changed. make: make the store if there is none.

        Raises DeviceUnreachable, HostKeyRefused, DeviceSoftware, DeviceBusy, DeviceStorage, NoPrevious if there is no store to
        write to, or DeliveryError if the folder is not a store of this program.
        """
        device = profile.device
        if device.host is None and not device.this_machine:
            raise DeliveryError(f"{device.name}: device.host is not set, so there is no device to ship to; set it")
        self.where = device.host or device.name
        self._device, self._timeouts = device, timeouts
        self._doing = "connecting"
        self._switched = False
        client = secrets.token_hex(8)
        try:
            if device.host is None:
                self._link = Link([sys.executable, str(AGENT), "serve", client])
            else:
                self._link = ssh_link(device, client, AGENT)
        except LinkLost as loss:
            raise diagnosis(loss, device) from None
        except Refused as refusal:
            raise self._error(refusal.kind, refusal.detail) from None
        # the bytes sent so far are the agent's text
        self._ends = time.monotonic() + timeouts.whole_s - self._link.sent_bytes / SLOWEST_BYTES_PER_S
        try:
            order = {"do": "open", "store": device.store, "silence_s": timeouts.silence_s, "write": write, "make": make}
            self.status = self.ask(order, StoreStatus)
        except BaseException:
            self.close()
            raise

    def ask(
        self,
        message: dict[str, Any],
        kind: type[Answer],
        blob: bytes = b"",
        arrived: Callable[[int], None] = lambda count: None,
    ) -> Answer:
        """Ask the agent, and return its answer as a `kind`. `arrived` is called with the number of bytes of `blob` that it has.

        Raises the error that a failure stands for, DeviceUnreachable and its subclasses for a lost link, DeliveryError for an
        invalid answer.
        """
        self._doing = message["do"]
        self._switched = self._switched or self._doing == "switch"
        try:
            answer = self._link.ask(
                message,
                blob,
                self._timeouts.silence_s,
                whole_s=self._ends + (self._link.sent_bytes + len(blob)) / SLOWEST_BYTES_PER_S - time.monotonic(),
                limit_bytes=ANSWER_BYTES,
                arrived=arrived,
            )
        except LinkLost as loss:
            raise self._lost(loss) from None
        if "failure" in answer:
            raise self._error(*answer["failure"])
        return checked(answer, kind, self.where)

    def close(self) -> None:
        """Close the connection. The device takes back a switch that was not committed. May be called twice."""
        with suppress(OSError):
            self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _error(self, kind: str, detail: str) -> CompressError:
        if kind not in ERRORS:
            return DeliveryError(
                f"{self.where}: {self._doing}: its agent reported an unknown kind of failure ({kind}: {detail}); {SAFE}"
            )
        error, remedy = ERRORS[kind]
        return error(f"{self.where}: {self._doing}: {detail}; {remedy}")

    def _lost(self, loss: LinkLost) -> CompressError:
        problem = diagnosis(loss, self._device)
        if not isinstance(problem, DeviceUnreachable):
            return problem
        if self._doing == "commit":
            after = "run `compress status` to see whether the commit arrived"
        elif self._switched:
            after = "the device returns to the old release by itself"
        else:
            after = KEPT
        return type(problem)(f"{problem}; connection lost during: {self._doing}; {after}")
