"""Screen for the result: the table at the end of a run, and the same for scripts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.screen import VERDICT_COLOURS
from pipeline.compress import Finished
from pipeline.core.artifact import Artifact
from pipeline.core.budget import worst_verdict
from pipeline.packaging.report.budgets import budgets_page
from pipeline.packaging.report.page import headline
from pipeline.system.units import format_bytes

__all__ = ["print_results", "results_json"]


def print_results(console: Console, finished: Sequence[Finished]) -> None:
    """Print the result. If there are several budgets: a table of them, and where the files are."""
    if len(finished) == 1:
        _print_result(console, finished[0])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("budget", no_wrap=True)
    shown = [_titles(each.artifact) for each in finished]
    for column in dict.fromkeys(title for titles in shown for title in titles):
        table.add_column(column, justify="right")
    table.add_column("size", justify="right")
    table.add_column("verdict")
    for each, titles in zip(finished, shown, strict=True):
        verdict = Text(each.artifact.verdict, style=VERDICT_COLOURS[each.artifact.verdict])
        table.add_row(each.budget, *titles.values(), format_bytes(each.artifact.files["model.onnx"].size_bytes), verdict)
    console.print()
    console.print(table)
    console.print()
    for each in finished:
        console.print(Text(f"{each.budget}: {headline(each.artifact)}", style=VERDICT_COLOURS[each.artifact.verdict]))
    for notice, budgets in _notices(finished).items():
        for_which = f" ({', '.join(budgets)})" if len(budgets) < len(finished) else ""
        console.print(Text(f"note: {notice}{for_which}", style="yellow"), soft_wrap=True)
    if measured := finished[0].artifact.shipped.measurement:
        console.print(f"figures: {measured.fingerprint.stamp} ({measured.fingerprint.machine})", style="dim")
    for each in finished:
        console.print(str(each.folder / "model.onnx"), highlight=False, soft_wrap=True)
    console.print(str(budgets_page(finished[0].folder.parent)), highlight=False, soft_wrap=True)


def _titles(artifact: Artifact) -> dict[str, str]:
    """Title -> figure of the compressed network and its change, for each limit of the budget, and for the accuracy."""
    found = {}
    for row in artifact.rows:
        if row.limit is not None or row.key == "accuracy_drop":
            _, after, change, _ = row.texts
            short = change.removesuffix(" points")
            found[row.title] = f"{after} ({short})" if short else after
    return found


def _notices(finished: Sequence[Finished]) -> dict[str, list[str]]:
    """Notice -> the budgets whose artifact has it."""
    found: dict[str, list[str]] = {}
    for each in finished:
        for notice in each.artifact.notices:
            found.setdefault(notice, []).append(each.budget)
    return found


def _print_result(console: Console, finished: Finished) -> None:
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


def results_json(finished: Sequence[Finished]) -> dict[str, Any]:
    """The result for scripts. If there are several budgets: the worst verdict, the page, and the result for each of them."""
    if len(finished) == 1:
        return _result_json(finished[0])
    return {
        "verdict": worst_verdict(each.artifact.verdict for each in finished),
        "page": str(budgets_page(finished[0].folder.parent)),
        "budgets": [{"budget": each.budget, **_result_json(each)} for each in finished],
    }


def _result_json(finished: Finished) -> dict[str, Any]:
    """The result for one budget. The complete evidence is in artifact.json."""
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
