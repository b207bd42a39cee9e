"""Screen for an inspection: tables of layers and groups, and the same for scripts."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.inspection.inspect_network import Inspection, PlanFacts
from pipeline.system.units import format_bytes, format_count, format_duration

__all__ = ["inspection_json", "print_inspection"]

UNBROKEN = 500
"""Width of a table that is written to a file or a pipe, in characters. A table is as wide as its content."""


def print_inspection(console: Console, found: Inspection) -> None:
    """Print the layers, the groups, the dense and the thinnest plan, and how long a search takes.

    A file or a pipe has no width, so each row of a table is one line there.
    """
    if not console.is_terminal:
        console.width = max(console.width, UNBROKEN)
    console.print()
    console.print(_layers(found))
    console.print()
    console.print(_groups(found))
    if found.blocks:
        console.print()
        console.print(_blocks(found))
    if found.not_prunable:
        console.print()
        for layer in found.not_prunable:
            console.print(f"not prunable: {layer.name}: {layer.reason}", soft_wrap=True)
    console.print()
    console.print(_plans(found))
    if found.search_s is not None and found.trial_s is not None:
        what = "" if found.scored else ", without scoring; give --data or --task for the whole time"
        console.print(
            f"\nsearch: about {format_duration(found.search_s)} for {found.trials} trials of {found.trial_s:.1f} s each{what}",
            soft_wrap=True,
        )
    for notice in found.notices:
        console.print(f"note: {notice}", soft_wrap=True)
    if found.fingerprint:
        console.print(Text(f"figures: {found.fingerprint.stamp} ({found.fingerprint.machine})", style="dim"))


def inspection_json(found: Inspection) -> dict[str, Any]:
    """Everything as plain data."""
    facts = asdict(found)
    fingerprint = found.fingerprint
    facts["fingerprint"] = {**asdict(fingerprint), "settings": dict(fingerprint.settings)} if fingerprint else None
    return {**facts, "search_s": found.search_s}


def _layers(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    timed = any(layer.latency_ms is not None for layer in found.layers)
    for title, side in (("layer", "left"), ("kind", "left"), ("output", "left"), ("params", "right"), ("MACs", "right")):
        table.add_column(title, justify=side, overflow="fold")  # type: ignore[arg-type]
    if timed:
        table.add_column("time", justify="right")
        table.add_column("", justify="right")
    table.add_column("group", overflow="fold")
    total_ms = sum(layer.latency_ms or 0.0 for layer in found.layers) + sum(found.others_ms.values())
    for layer in found.layers:
        times = [f"{layer.latency_ms or 0.0:.3f} ms", _share(layer.latency_ms or 0.0, total_ms)] if timed else []
        owner = Text(", ".join(layer.groups)) if layer.groups else Text("-", style="dim")
        shape = "x".join(str(size) for size in layer.outputs)
        counts = (_share(layer.params, found.dense.params), _share(layer.macs, found.dense.macs))
        table.add_row(layer.title, layer.kind, shape, *counts, *times, owner)
    for operator, ms in found.others_ms.items():
        table.add_row(Text(operator, style="dim"), "", "", "", "", f"{ms:.3f} ms", _share(ms, total_ms), "")
    return table


def _groups(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold")
    for title in ("channels", "smallest", "saves params", "saves MACs", "layers"):
        table.add_column(title, justify="right")
    for group in found.groups:
        saved = (f"{100 * share:.1f} %" for share in (group.params_share, group.macs_share))
        table.add_row(group.name, str(group.channels), str(group.smallest), *saved, str(len(group.layers)))
    return table


def _blocks(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("block that can be dropped", overflow="fold")
    for title in ("saves params", "saves MACs"):
        table.add_column(title, justify="right")
    for block in found.blocks:
        table.add_row(block.name, *(f"{100 * share:.1f} %" for share in (block.params_share, block.macs_share)))
    return table


def _plans(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("dense", "thinnest", "of dense"):
        table.add_column(title, justify="right")
    dense, thinnest = found.dense, found.thinnest
    for title, one, other, show in (
        ("parameters", dense.params, thinnest.params, format_count),
        ("MACs", dense.macs, thinnest.macs, format_count),
        ("file size", dense.file_size_bytes, thinnest.file_size_bytes, format_bytes),
    ):
        table.add_row(title, show(one), show(other), _share(other, one))
    if dense.latency_p50_ms and thinnest.latency_p50_ms:
        share = _share(thinnest.latency_p50_ms.value, dense.latency_p50_ms.value)
        table.add_row("latency p50", _latency(dense), _latency(thinnest), share)
    return table


def _latency(plan: PlanFacts) -> str:
    return f"{plan.latency_p50_ms.value:.3f} ms{' (doubtful)' if plan.doubts else ''}" if plan.latency_p50_ms else ""


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
