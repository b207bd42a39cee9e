"""Screen for the result: the table at the end of a run, and the same for scripts."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.screen import VERDICT_COLOURS
from pipeline.compress import Finished
from pipeline.core.artifact import Artifact
from pipeline.packaging.report.page import headline
from pipeline.system.units import format_bytes

__all__ = ["print_result", "result_json"]


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
        verdict = Text(row.verdict or "", style=VERDICT_COLOURS.get(row.verdict or "", ""))
        change = "\n".join(filter(None, (change, row.interval_text)))
        table.add_row(row.title, dense, after, change, f"<= {limit}" if limit else "", verdict)
    console.print()
    console.print(table)
    if artifact.precisions:
        console.print()
        console.print(_precisions(artifact))
    console.print()
    if artifact.blocks:
        console.print(artifact.removed_text, highlight=False)
    console.print(Text(headline(artifact), style=VERDICT_COLOURS[artifact.verdict]))
    for notice in artifact.notices:
        console.print(Text(f"note: {notice}", style="yellow"), soft_wrap=True)
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
        "notices": list(artifact.notices),
        "figures": measured.fingerprint.stamp if measured else None,
        "rows": [asdict(row) for row in artifact.rows],
    }
