"""PoolProbe: several boards of one type that measure at the same time, each against its own dense graph."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from pipeline.core.measurement import Failure, Fingerprint, Measurement, pool_of
from pipeline.errors import DeviceUnreachable, ProbeError
from pipeline.foreign_text import shorten
from pipeline.probe.connection import Notify
from pipeline.probe.interface import Graph, MeasurementOptions, Probe, Workload
from pipeline.remote.link import LinkLost

__all__ = ["LEAST_BOARDS", "RETRY_S", "Board", "PoolProbe", "refused_boards"]

LEAST_BOARDS = 2
"""Number of boards that measure a plan before a verdict on a pool."""
RETRY_S = 5.0
"""Pause between two tries to connect to a lost board."""
ALIKE = ("machine", "architecture", "onnxruntime", "wheel", "threads")
"""What must be equal on all boards of a pool."""


@dataclass(frozen=True)
class Board:
    """One board of a pool."""

    name: str
    """Its address."""
    probe: Probe
    reconnect: Callable[[], None]
    """Connects again, once. Raises ProbeError if that fails."""


def refused_boards(fingerprints: Sequence[tuple[str, Fingerprint]], onnxruntime: str | None) -> dict[str, str]:
    """The boards that must not be pooled with the others, each with the reason in one line.

    `fingerprints`: name and fingerprint of each board. The first one with the version `onnxruntime`, or else the first one, is
    what all others must be like.
    """
    first_name, first = next((pair for pair in fingerprints if pair[1].onnxruntime == onnxruntime), fingerprints[0])
    refused = {}
    for name, found in fingerprints:
        for key in ALIKE:
            mine, theirs = getattr(found, key), getattr(first, key)
            if mine != theirs:
                title = {"machine": "the processor", "wheel": "a wheel for"}.get(key, key)
                refused[name] = (
                    f"{name}: {title} {mine}, but {first_name} has {theirs}; it is left out of the pool; make both equal, or "
                    "remove it from device.hosts"
                )
                break
    return refused


class PoolProbe:
    """See `Probe`. A plan is measured on one free board, and with `options.every_board` on all boards.

    A board that is lost during a measurement leaves the pool, and the plan is measured on another board. The board returns as
    soon as it answers again. Methods may be called from several threads; then as many boards measure at once.
    """

    def __init__(self, boards: Sequence[Board], *, every_board: bool, patience_s: float, notify: Notify) -> None:
        """`patience_s`: how long to wait for a board if too few are left."""
        self._boards, self._every_board, self._patience_s, self._notify = tuple(boards), every_board, patience_s, notify
        self._free, self._lost = list(self._boards), dict[str, str]()
        self._changed = threading.Condition()
        self._closed = threading.Event()

    @property
    def boards(self) -> tuple[Board, ...]:
        """All boards, lost ones included."""
        return self._boards

    @property
    def fingerprint(self) -> Fingerprint:
        """What all boards have in common."""
        return replace(self._boards[0].probe.fingerprint, identity="pool", system="")

    @property
    def busy_cores(self) -> tuple[int, ...]:
        """Cores of this machine on which a board times its runs; usually none."""
        return tuple(sorted({core for board in self._boards for core in board.probe.busy_cores}))

    def measure(self, graph: Graph, options: MeasurementOptions, load: Workload | None = None) -> Measurement | Failure:
        """See `Probe.measure`. Raises ProbeError if too few boards are left, and none returns in time."""
        if options.every_board:
            return self._on_every_board(graph, options, load)
        while True:
            measured = self._measured(self._taken(), graph, options, load)
            if measured is not None:
                return measured

    def close(self) -> None:
        """Close every board, even during a measurement."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()
        for board in self._boards:
            board.probe.close()

    def _on_every_board(self, graph: Graph, options: MeasurementOptions, load: Workload | None) -> Measurement | Failure:
        measured: dict[str, Measurement] = {}
        with ThreadPoolExecutor(len(self._boards)) as threads:
            while len(measured) < LEAST_BOARDS:
                boards = [board for board in self._up(LEAST_BOARDS) if board.name not in measured]
                tried = threads.map(lambda board: self._measured(self._taken(board), graph, options, load), boards)
                for board, found in zip(boards, tried, strict=True):
                    if isinstance(found, Failure):
                        return found
                    if found is not None:
                        measured[board.name] = found
        ordered = [measured[board.name] for board in self._boards if board.name in measured]
        return pool_of(ordered, every_board=self._every_board)

    def _measured(
        self, board: Board | None, graph: Graph, options: MeasurementOptions, load: Workload | None
    ) -> Measurement | Failure | None:
        """Measure on `board`, which is not free, and free it. None if it is lost."""
        if board is None:
            return None
        try:
            measured = board.probe.measure(graph, options, load)
        except (ProbeError, LinkLost) as problem:
            if self._closed.is_set():
                raise
            self._lose(board, shorten(str(problem), 300))
            return None
        except BaseException:
            self._release(board)
            raise
        self._release(board)
        return replace(measured, board=board.name) if isinstance(measured, Measurement) else measured

    def _taken(self, wanted: Board | None = None) -> Board | None:
        """Take a free board: `wanted`, or the first one. None if `wanted` is lost. Raises ProbeError if all stay lost."""
        since: float | None = None
        with self._changed:
            while True:
                if self._closed.is_set():
                    raise ProbeError("the pool of boards was closed")
                if wanted is not None and wanted.name in self._lost:
                    return None
                free = [board for board in self._boards if board in self._free and wanted in (None, board)]
                if free:
                    self._free.remove(free[0])
                    return free[0]
                since = self._waiting(since, 1)
                self._changed.wait(RETRY_S)

    def _up(self, least: int) -> list[Board]:
        """The boards that are not lost. Waits for at least `least` of them. Raises ProbeError if they stay lost."""
        since: float | None = None
        with self._changed:
            while len(up := [board for board in self._boards if board.name not in self._lost]) < least:
                since = self._waiting(since, least)
                self._changed.wait(RETRY_S)
        return up

    def _waiting(self, since: float | None, least: int) -> float | None:
        """Since when too few boards are up; None while there are enough. Raises ProbeError after `patience_s`."""
        up = len(self._boards) - len(self._lost)
        if up >= least:
            return None
        if self._closed.is_set() or (since is not None and time.monotonic() - since >= self._patience_s):
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self._lost.items())
            raise DeviceUnreachable(
                f"{up} of {len(self._boards)} boards can be reached, and at least {least} must measure ({reasons}); all finished "
                "trials are saved: run the same command again when the boards are back"
            )
        return since if since is not None else time.monotonic()

    def _release(self, board: Board) -> None:
        with self._changed:
            self._lost.pop(board.name, None)
            self._free.append(board)
            self._changed.notify_all()

    def _lose(self, board: Board, reason: str) -> None:
        with self._changed:
            self._lost[board.name] = reason
            self._changed.notify_all()
        self._notify(f"{board.name} is lost ({reason}); its plan is measured on another board")
        threading.Thread(target=self._bring_back, args=(board,), daemon=True).start()

    def _bring_back(self, board: Board) -> None:
        """Try to connect to a lost board until it answers, or the pool is closed."""
        while not self._closed.wait(RETRY_S):
            try:
                board.reconnect()
            except (ProbeError, LinkLost) as problem:
                with self._changed:
                    self._lost[board.name] = shorten(str(problem), 300)
                continue
            if self._closed.is_set():
                board.probe.close()
                return
            self._notify(f"{board.name} is back in the pool")
            self._release(board)
            return
