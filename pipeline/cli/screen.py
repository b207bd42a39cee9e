"""Screen: what the terminal shows during a run. Importing it does not import torch, which takes seconds."""

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from pipeline.cli.heartbeat import Clock, Heartbeat
from pipeline.core.budget import Verdict
from pipeline.core.candidate import Candidate
from pipeline.foreign_text import clean_text
from pipeline.system.units import format_count, format_duration

__all__ = ["VERDICT_COLOURS", "Screen"]

VERDICT_COLOURS = {"within": "green", "over": "bold red", "undecided": "yellow"}
BEAT_S = 0.5
"""How often the screen looks whether something must be shown."""
REDRAW_S = 0.2
"""A bar is not drawn more often than this."""


class Screen:
    """A `Callback` that prints a line for each stage, notice and trial, and shows that a long stage is at work.

    On a terminal, a bar shows this. Elsewhere, as in a log, a line is printed when nothing else was for some seconds. The screen
    is a context manager: a thread of its own looks after the time inside the block. Without it, call `beat`.
    """

    def __init__(self, console: Console, stage: str = "start", clock: Clock | None = None) -> None:
        """`stage` is the name of what is done before the first `phase`."""
        self._console = console
        self._heartbeat = Heartbeat(stage, clock) if clock else Heartbeat(stage)
        self._clock = self._heartbeat.clock
        self._started = self._clock()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = self._started
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._beat_until_ended, daemon=True, name="heartbeat")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self.close()
        if kind is None:
            self._raise_failure()

    @property
    def alive(self) -> bool:
        """Whether the thread looks after the time."""
        return self._thread.is_alive()

    def phase(self, name: str, detail: str) -> None:
        """Show that a stage begins."""
        with self.printing():
            self._heartbeat.begin(name)
            elapsed = format_duration(self._clock() - self._started)
            self._console.print(Text.assemble((f"{name:<10}", "bold"), f" {detail}", (f"  (after {elapsed})", "dim")))

    def say(self, text: str) -> None:
        """Print a line about the current stage."""
        with self.printing():
            self._console.print(Padding(text, (0, 0, 0, 2)))

    def notice(self, text: str) -> None:
        """Print a notice."""
        with self.printing():
            self._console.print(Padding(Text(f"note: {text}", style="yellow"), (0, 0, 0, 2)))

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """Print one line per trial, with the remaining time."""
        width = len(str(total))
        if candidate.failure:
            figures = f"{candidate.failure.kind}: {clean_text(candidate.failure.detail, 60)}"
        else:
            relative = candidate.measurement.relative_p50 if candidate.measurement else None
            latency = f"{100 * relative.value:5.1f} %" if relative else "    ?"
            figures = f"p50 {latency}  {format_count(candidate.params):>7} params  score {candidate.score or 0:6.2f}"
        mark = (f"{verdict:<9}", VERDICT_COLOURS[verdict])
        best_text = f"best {best.score or 0:.2f}" if best else "none yet"
        with self.printing():
            self._heartbeat.advance(number, total, f"trial {number} of {total} is finished")
            left = self._heartbeat.left_s
            left_text = "" if left is None else f"  {format_duration(left)}"
            line = Text.assemble(f"  {number:>{width}}/{total} {figures}  ", mark, f"  {best_text}", (left_text, "dim"))
            self._console.print(line, no_wrap=True, overflow="ellipsis")

    def progress(self, done: int, total: int, text: str) -> None:
        """Show a bar on a terminal. In a log, the next line of the heartbeat says how far the stage is."""
        with self._lock:
            self._raise_failure()
            self._heartbeat.advance(done, total, text)
            if self._console.is_terminal and (self._progress is None or self._clock() - self._drawn >= REDRAW_S):
                self._draw()

    def beat(self) -> None:
        """Show that the stage is at work, if nothing was shown for some seconds."""
        with self._lock:
            if self._console.is_terminal:
                if self._progress or self._heartbeat.due:
                    self._draw()
            elif self._heartbeat.due:
                self._console.print(f"  {self._heartbeat.line()}", soft_wrap=True)
                self._heartbeat.shown()

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """Inside the block, the caller may print: the bar is gone, and the heartbeat waits."""
        with self._lock:
            self._raise_failure()
            self.close()
            yield
            self._heartbeat.shown()

    def close(self) -> None:
        """Remove the bar, and restore the terminal."""
        with self._lock:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def _draw(self) -> None:
        if self._progress is None:
            columns = (BarColumn(20), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._console, transient=True, auto_refresh=False)
            self._task = self._progress.add_task("", total=None)
            self._progress.start()
        share = self._heartbeat.share
        self._progress.update(
            self._task,
            completed=0 if share is None else share,
            total=None if share is None else 1.0,
            description=self._heartbeat.line(),
            refresh=True,
        )
        self._drawn = self._clock()

    def _beat_until_ended(self) -> None:
        try:
            while not self._ended.wait(BEAT_S):
                self.beat()
        except BaseException as failure:  # standard output is lost: the main thread must learn it
            self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
