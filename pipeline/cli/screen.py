"""Screen: what the terminal shows during a run, and the table at its end."""

import time
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from pipeline.compress import Finished
from pipeline.core.artifact import Artifact
from pipeline.core.budget import Verdict
from pipeline.core.candidate import Candidate
from pipeline.foreign_text import clean_text
from pipeline.packaging.report.page import headline
from pipeline.system.units import format_bytes, format_count, format_duration

__all__ = ["Screen", "print_result", "result_json"]

_COLOURS = {"within": "green", "over": "bold red", "undecided": "yellow"}


class Screen:
    """A `Callback` that prints: a line for each stage, notice and trial, and a progress bar if the terminal can show one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._phase_started = self._started
        self._printed_share = -1.0

    def phase(self, name: str, detail: str) -> None:
        """Show that a stage begins."""
        self._end_bar()
        self._phase_started = time.monotonic()
        elapsed = format_duration(self._phase_started - self._started)
        self._console.print(Text.assemble((f"{name:<10}", "bold"), f" {detail}", (f"  (after {elapsed})", "dim")))

    def say(self, text: str) -> None:
        """Print a line about the current stage."""
        self._console.print(Padding(text, (0, 0, 0, 2)))

    def notice(self, text: str) -> None:
        """Print a notice."""
        self._console.print(Padding(Text(f"note: {text}", style="yellow"), (0, 0, 0, 2)))

    def trial(
        self, number: int, total: int, candidate: Candidate, dense: Candidate, verdict: Verdict, best: Candidate | None
    ) -> None:
        """Print one line per trial, with the remaining time."""
        left = (time.monotonic() - self._phase_started) / number * (total - number)
        width = len(str(total))
        if candidate.failure:
            figures = f"{candidate.failure.kind}: {clean_text(candidate.failure.detail, 60)}"
        else:
            relative = candidate.measurement.relative_p50 if candidate.measurement else None
            latency = f"{100 * relative.value:5.1f} %" if relative else "    ?"
            figures = f"p50 {latency}  {format_count(candidate.params):>7} params  score {candidate.score or 0:6.2f}"
        mark = (f"{verdict:<9}", _COLOURS[verdict])
        best_text = f"best {best.score or 0:.2f}" if best else "none yet"
        line = Text.assemble(
            f"  {number:>{width}}/{total} {figures}  ", mark, f"  {best_text}", (f"  {format_duration(left)}", "dim")
        )
        self._console.print(line, no_wrap=True, overflow="ellipsis")

    def progress(self, done: int, total: int, text: str) -> None:
        """Show a progress bar on a terminal. In a log, print a line for every tenth."""
        if not self._console.is_terminal:
            if done / total >= self._printed_share + 0.1 or done == total:
                self._printed_share = done / total if done < total else -1.0
                self._console.print(f"  {100 * done / total:3.0f} % {text}")
            return
        if self._progress is None:
            self._progress = Progress(
                BarColumn(), TextColumn("{task.percentage:3.0f} %  {task.description}"), console=self._console, transient=True
            )
            self._progress.start()
            self._task = self._progress.add_task(text, total=total)
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=text)

    def close(self) -> None:
        """Restore the terminal."""
        self._end_bar()

    def _end_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._task = None, None


def print_result(console: Console, finished: Finished) -> None:
    """Print the result: a table of dense, after, budget and verdict, and where the files are."""
    artifact, folder = finished.artifact, finished.folder
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("dense", "after", "change", "budget"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for row in artifact.rows:
        dense, after, change, limit = row.texts
        verdict = Text(row.verdict or "", style=_COLOURS.get(row.verdict or "", ""))
        change = "\n".join(filter(None, (change, row.interval_text)))
        table.add_row(row.title, dense, after, change, f"<= {limit}" if limit else "", verdict)
    console.print()
    console.print(table)
    if artifact.precisions:
        console.print()
        console.print(_precisions(artifact))
    console.print()
    console.print(Text(headline(artifact), style=_COLOURS[artifact.verdict]))
    measured = artifact.shipped.measurement
    if measured:
        console.print(f"figures: {measured.fingerprint.stamp} ({measured.fingerprint.machine})", style="dim")
    size = format_bytes(artifact.files["model.onnx"].size_bytes)
    console.print(f"{folder / 'model.onnx'} ({size})\n{folder / 'report.html'}", highlight=False, soft_wrap=True)


def _precisions(artifact: Artifact) -> Table:
    """A table of dense and pruned, float32 and int8."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("latency p50", "of dense fp32", "validation score", "file"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in artifact.precisions:
        shipped = row.network == "pruned" and row.precision == artifact.precision
        table.add_row(*row.texts, "shipped" if shipped else "")
    return table


def result_json(finished: Finished) -> dict[str, Any]:
    """The result for scripts. The complete evidence is in artifact.json."""
    artifact = finished.artifact
    measured = artifact.shipped.measurement
    return {
        "verdict": artifact.verdict,
        "artifact": str(finished.folder),
        "model": str(finished.folder / "model.onnx"),
        "sha256": artifact.files["model.onnx"].sha256,
        "precision": artifact.precision,
        "figures": measured.fingerprint.stamp if measured else None,
        "rows": [asdict(row) for row in artifact.rows],
    }
