"""Link: the process of a worker, local or through OpenSSH, and its two pipes. Every answer has a deadline and a size limit."""

import json
import os
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pipeline.core.profile import Device
from pipeline.foreign_text import clean_lines, clean_text, clean_values
from pipeline.remote.ssh_arguments import ssh_arguments
from pipeline.system.thread_settings import original_environment

__all__ = ["Link", "LinkLost", "Refused", "Start", "local_link", "ssh_link"]

_HEADER = struct.Struct(">IQ")
_STALL_S = 120.0
"""A pipe that accepts no byte for this long counts as lost; a slow one accepts some."""
_START_S = 60.0
_SLOWEST_BYTES_PER_S = 1000
"""A slower link counts as lost."""
_LIMIT_BYTES = 64 * 2**20
"""The longest valid answer; it holds the latencies of all runs of a measurement."""
_SHORT_BYTES = 4096
"""Longer answers may arrive slowly."""
_PIECE_BYTES = 2**18
_BOOTSTRAP_FILE = Path(__file__).with_name("bootstrap.py")
# The only text for the device's shell besides the interpreter's name. It reads bootstrap.py, which reads the program.
_BOOTSTRAP = "import sys; s = sys.stdin.buffer; exec(s.read(int(s.readline())))"


class LinkLost(Exception):
    """The worker's process ended, stopped answering, or never started. The message says what is known."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        """Exit status of the process, if it ended."""


class Refused(Exception):
    """The worker started but cannot work. `kind` is one of the worker's failures."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


class Link:
    """A connection to one worker. Messages are  u32 length of the JSON | u64 length of the bytes | JSON | bytes,  big-endian."""

    def __init__(self, arguments: list[str], greeting: bytes = b"") -> None:
        """Start the command `arguments`. If there is a `greeting`, write it and wait for the worker's first message.

        Raises LinkLost when the program does not exist or does not answer, and Refused when it cannot work.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (it stays open as long as the process)
        try:
            # a session of its own, because Ctrl-C must only reach this process, which then closes the pipe
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
                env=original_environment(),
            )
        except OSError as problem:
            self._errors.close()
            raise LinkLost(f"{arguments[0]} cannot be started: {problem.strerror}") from None
        self._in, self._out = self._process.stdin, self._process.stdout
        for stream in (self._in, self._out):
            if stream:
                os.set_blocking(stream.fileno(), False)
        self.sent_bytes = 0
        self.received_bytes = 0
        if greeting:
            try:
                self._write(greeting)
                # the bootstrap reads ahead, so later bytes would be lost when it replaces itself by the program
                patience_s = _START_S + len(greeting) / _SLOWEST_BYTES_PER_S
                first = self._message(_Deadline(patience_s, patience_s), _LIMIT_BYTES)
                if "failure" in first:
                    raise Refused(*first["failure"])
            except BaseException:
                self.close()
                raise

    def ask(
        self,
        message: dict[str, Any],
        blob: bytes = b"",
        limit_s: float = 60.0,
        *,
        whole_s: float = 3600.0,
        limit_bytes: int = _LIMIT_BYTES,
        arrived: Callable[[int], None] = lambda count: None,
    ) -> dict[str, Any]:
        """Send a request and wait for the answer.

        message: sent as JSON. blob: the bytes after it. limit_s: the longest silence. A worker that is preparing an answer sends
        {"alive": true} every few seconds, which ends a silence. While the blob is being sent, only progress ends it: a worker
        that reports how many bytes have arrived, as {"alive": true, "received": N}, must report more each time. whole_s: the
        longest time until the answer, whatever the worker sends meanwhile. limit_bytes: the longest answer. arrived: called with
        the number of bytes of the blob that the worker says it has.

        Raises LinkLost when the worker ends, is silent for too long, takes too long, or sends an invalid or too long answer.
        """
        deadline = _Deadline(limit_s, whole_s)
        text = json.dumps(message, separators=(",", ":")).encode()
        self._write(_HEADER.pack(len(text), len(blob)) + text, deadline)
        self._write(blob, deadline)
        deadline.renew()
        known = 0
        while True:
            answer = self._message(deadline, limit_bytes)
            if "alive" not in answer:
                return answer
            received = answer.get("received", len(blob))
            if received == len(blob) or (isinstance(received, int) and known < received < len(blob)):
                known = received
                arrived(known)
                deadline.renew()

    def _message(self, deadline: "_Deadline", limit_bytes: int) -> dict[str, Any]:
        size, blob_size = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if blob_size or size > _LIMIT_BYTES:
            raise self._lost("its answer is not in the expected format (does a shell start-up file print something?)")
        if size > limit_bytes:
            raise self._lost(f"it announced an answer of {size} bytes, but the limit is {limit_bytes}", ending=False)
        text = self._read(size, deadline, renews=size > _SHORT_BYTES)
        with suppress(ValueError, RecursionError):
            answer = json.loads(text)
            if isinstance(answer, dict) and _is_failure(answer.get("failure", ["", ""])):
                return dict(clean_values(answer))
        raise self._lost("its answer is not in the expected format")

    def close(self) -> None:
        """Close the pipe, so that the worker deletes its files and ends; otherwise it is killed. This may be called twice."""
        for stream in (self._in, self._out):
            if stream:
                with suppress(OSError):
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _write(self, data: bytes, deadline: "_Deadline | None" = None) -> None:
        if self._in is None or self._in.closed:
            raise LinkLost("the connection was closed")
        view = memoryview(data)
        while view:
            patience_s = min(_STALL_S, deadline.left_in_all_s) if deadline else _STALL_S
            if patience_s <= 0 or not select.select([], [self._in], [], patience_s)[1]:
                raise self._lost(f"it accepted no data for {patience_s:.0f} s")
            try:
                count = os.write(self._in.fileno(), view[:_PIECE_BYTES])
            except BlockingIOError:
                continue
            except OSError:
                raise self._lost("its process ended") from None
            self.sent_bytes += count
            view = view[count:]

    def _read(self, count: int, deadline: "_Deadline", *, renews: bool = False) -> bytes:
        if self._out is None or self._out.closed:
            raise LinkLost("the connection was closed")
        parts = bytearray()
        while len(parts) < count:
            left_s = deadline.left_s
            if left_s <= 0 or not select.select([self._out], [], [], left_s)[0]:
                raise self._lost(
                    "it does not answer" if deadline.left_in_all_s > 0 else "it did not finish in time", ending=False
                )
            data = os.read(self._out.fileno(), min(count - len(parts), _PIECE_BYTES))
            if not data:
                raise self._lost("its process ended")
            parts += data
            if renews:
                deadline.renew()
            self.received_bytes += len(data)
        return bytes(parts)

    def _lost(self, what: str, *, ending: bool = True) -> LinkLost:
        """Return the error for `what`, with the last error messages of the process, if any.

        `ending`: the process may have ended, or be about to.
        """
        status = None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(2 if ending else 0.1)
        self._errors.seek(0)
        lines = [line for line in clean_lines(self._errors.read(1 << 16).decode(errors="replace")) if not set(line) <= {"@"}]
        return LinkLost(clean_text(" | ".join([what, *lines[-3:]]), 500), status)


class _Deadline:
    """Two time limits: one on silence, which can be renewed, and one on the whole request, which cannot."""

    def __init__(self, silence_s: float, whole_s: float) -> None:
        self._silence_s = silence_s
        self._ends = time.monotonic() + whole_s
        self.renew()

    def renew(self) -> None:
        """Restart the time limit on silence, because data moved."""
        self._silent = time.monotonic() + self._silence_s

    @property
    def left_s(self) -> float:
        """Time to wait for the next bytes."""
        return max(0.0, min(self._silent - time.monotonic(), self.left_in_all_s))

    @property
    def left_in_all_s(self) -> float:
        """Time left for the whole request."""
        return max(0.0, self._ends - time.monotonic())


def _is_failure(value: object) -> bool:
    """Whether `value` is a kind and a detail."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


class Start(Protocol):
    """Starts a worker on this machine or on a device."""

    def __call__(self) -> Link:
        """Start a new worker. Raises LinkLost when that fails."""


def local_link(program: Path) -> Link:
    """Start `program` on this machine."""
    return Link([sys.executable, str(program), "serve"])


def ssh_link(device: Device, client: str, program: Path) -> Link:
    """Start `program` on `device`, which receives its text first and keeps it in its cache folder.

    The system's OpenSSH is started from a list of arguments, so the user's configuration, keys, agent and jump hosts apply. ssh
    never asks for a password, and it refuses an unknown host key whatever the configuration says.
    `client`: identifies this run on the device, so that it can replace its own old worker after a lost connection.
    """
    home, _, rest = device.python.partition("~/")
    python = '"$HOME"/' + shlex.quote(rest) if not home and rest else shlex.quote(device.python)
    command = f"exec {python} -c {shlex.quote(_BOOTSTRAP)} {shlex.quote(program.stem)} {shlex.quote(client)}"
    texts = (_BOOTSTRAP_FILE.read_bytes(), program.read_bytes())
    return Link(
        [*ssh_arguments(device), "--", device.host or "", command], b"".join(b"%d\n" % len(text) + text for text in texts)
    )
