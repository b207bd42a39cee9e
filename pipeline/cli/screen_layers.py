"""Screen for layers: how long each node of a file runs, and on which provider."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.core.node_times import NodeTime, summed

__all__ = ["layers_json", "print_layers", "short"]

SHOWN = 20
"""Number of nodes in the table. All are in the JSON."""


def print_layers(console: Console, name: str, nodes: Sequence[NodeTime]) -> None:
    """Print the slowest nodes, and all of them by operator and by provider."""
    total = sum(node.ms for node in nodes)
    slowest = sorted(nodes, key=lambda node: -node.ms)
    number = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    console.print(Text(f"\n{name}: {number} after optimisation, {total:.3f} ms with the profiler", style="bold"), soft_wrap=True)
    table = _table("node", "operator", "provider", "time", "share")
    for node in slowest[:SHOWN]:
        table.add_row(node.name, node.operator, short(node.provider), *_time(node.ms, total))
    if len(slowest) > SHOWN:
        rest = sum(node.ms for node in slowest[SHOWN:])
        table.add_row(f"{len(slowest) - SHOWN} others", "", "", *_time(rest, total))
    console.print(table)
    by_operator = _table("operator", "nodes", "time", "share")
    for operator, count, ms in summed(nodes, lambda node: node.operator):
        by_operator.add_row(operator, str(count), *_time(ms, total))
    console.print("")
    console.print(by_operator)
    by_provider = _table("provider", "nodes", "time", "share")
    for provider, count, ms in summed(nodes, lambda node: node.provider):
        by_provider.add_row(short(provider), str(count), *_time(ms, total))
    console.print("")
    console.print(by_provider)


def short(provider: str) -> str:
    """The name without the word that all have: CPU, OpenVINO."""
    return provider.removesuffix("ExecutionProvider")


def layers_json(nodes: Sequence[NodeTime]) -> dict[str, Any]:
    """The same for scripts. Nodes are in the order in which they run."""
    return {
        "nodes": [vars(node) for node in nodes],
        "by_operator": _groups(summed(nodes, lambda node: node.operator)),
        "by_provider": _groups(summed(nodes, lambda node: node.provider)),
    }


def _groups(found: list[tuple[str, int, float]]) -> list[dict[str, Any]]:
    return [{"name": name, "nodes": count, "ms": ms} for name, count, ms in found]


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in ("nodes", "time", "share") else "left", overflow="fold")
    return table


def _time(ms: float, total: float) -> tuple[str, str]:
    return f"{ms:.3f} ms", f"{100 * ms / total:.1f} %" if total else ""
