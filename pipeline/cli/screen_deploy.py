"""Screen for shipping: a progress bar for each device in progress, and a line for each finished one."""

import contextlib
import threading
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pipeline.cli.screen import Screen
from pipeline.deploy.deliver import Delivered
from pipeline.deploy.fleet import Outcome
from pipeline.deploy.protocol import StoreStatus
from pipeline.system.units import format_bytes

__all__ = ["ShipScreen", "outcome_json", "print_status"]

_STYLES = {"shipped": "green", "unchanged": "green", "failed": "red", "not tried": "yellow"}


class ShipScreen:
    """A context manager. Several threads may use it at once. In a log, a line says what is under way if all else is silent."""

    def __init__(self, console: Console, width: int) -> None:
        """`width`: length of the longest name."""
        self._console, self._width = console, width
        columns = (TextColumn("{task.description}"), TextColumn("{task.fields[step]:<8}"), BarColumn(30))
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        self._log = None if console.is_terminal else Screen(console, "ship")
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._log:
            self._open.enter_context(self._log)
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()
        self._open.__exit__(kind, error, trace)

    def step(self, name: str, step: str, done: int, total: int) -> None:
        """Show that a device has reached `step`, with `done` of `total` bytes if they are counted."""
        if self._log:
            self._log.progress(done, total, f"{name}: {step}")
        with self._lock:
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(f"{name:<{self._width}}", step=step, total=None)
            self._progress.update(self._tasks[name], step=step, completed=done, total=total or None)

    def done(self, outcome: Outcome) -> None:
        """Print the line of a device that is done."""
        with self._lock:
            task = self._tasks.pop(outcome.name, None)
            if task is not None:
                self._progress.remove_task(task)
        line = f"{outcome.name:<{self._width}}  {outcome.result:<9}  "
        with self._log.printing() if self._log else contextlib.nullcontext():
            self._console.print(line + _facts(outcome), style=_STYLES[outcome.result], soft_wrap=True)


def print_status(console: Console, name: str, found: StoreStatus) -> None:
    """Print what a device serves, in a few lines."""
    serving = next((each for each in found.history if each.release == found.current), None)
    version = f"  {serving.name} version {serving.version}" if serving and serving.version else ""
    console.print(f"{name}  {found.current[:12] if found.current else 'no active release'}{version}", soft_wrap=True)
    for release in found.history:
        mark = "active  " if release.release == found.current else "previous"
        console.print(
            f"  {mark}  {release.release[:12]}  version {release.version}  {release.at or 'time not known'}", soft_wrap=True
        )
    if found.busy:
        console.print("  another shipment is in progress", style="yellow")
    if found.pending:
        console.print(
            f"  {found.pending[:12]} was switched to but not committed; unless a shipment is in progress, the next ship or "
            "rollback undoes the switch",
            style="yellow",
            soft_wrap=True,
        )
    if not found.pending and found.current != (found.history[0].release if found.history else None):
        console.print("  `current` does not point to the committed release; the next ship or rollback repairs it", style="yellow")
    if found.foreign:
        console.print(f"  not created by compress, and not touched: {', '.join(found.foreign)}", style="yellow", soft_wrap=True)
    if found.last:
        console.print(f"  last event: {found.last}", soft_wrap=True)
    console.print(f"  {found.store}: {format_bytes(found.free_bytes)} free", soft_wrap=True)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome of a device as plain data."""
    return asdict(outcome)


def _facts(outcome: Outcome) -> str:
    if outcome.delivered is None:
        return outcome.message or ""
    return _delivered(outcome.delivered)


def _delivered(found: Delivered) -> str:
    parts = [found.release[:12], f"version {found.version}"]
    if not found.changed:
        return ", ".join([*parts, "already active"])
    parts.append(f"{format_bytes(found.sent_bytes)} sent")
    if found.health and found.health.latency_p90_ms:
        parts.append(f"p90 {found.health.latency_p90_ms:.3f} ms")
    if found.health and found.health.peak_memory_bytes:
        parts.append(f"peak memory {format_bytes(found.health.peak_memory_bytes)}")
    return ", ".join(parts)
