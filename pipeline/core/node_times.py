"""Node times: how long each node of a file runs, and on which provider."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

__all__ = ["NodeTime", "fallback", "summed"]

SHOWN = 5
"""Number of operators that a sentence names."""


@dataclass(frozen=True)
class NodeTime:
    """A node as the runtime optimised it. It may be several nodes of the file in one."""

    name: str
    operator: str
    ms: float
    """Milliseconds of the fastest profiled run. The sum over nodes is not the latency, because the profiler takes time."""
    provider: str = "CPUExecutionProvider"


def summed(nodes: Iterable[NodeTime], key: Callable[[NodeTime], str]) -> list[tuple[str, int, float]]:
    """Return (key, number of nodes, milliseconds) of the nodes with each key, the slowest first.

    >>> summed([NodeTime("a", "Conv", 2.0), NodeTime("b", "Relu", 0.5), NodeTime("c", "Conv", 1.0)], lambda node: node.operator)
    [('Conv', 2, 3.0), ('Relu', 1, 0.5)]
    """
    counts: dict[str, int] = defaultdict(int)
    totals: dict[str, float] = defaultdict(float)
    for node in nodes:
        counts[key(node)] += 1
        totals[key(node)] += node.ms
    return sorted(((name, counts[name], total) for name, total in totals.items()), key=lambda entry: -entry[2])


def fallback(nodes: Iterable[NodeTime], provider: str) -> str | None:
    """Say which nodes another provider than `provider` ran; None if there are none.

    >>> fallback([NodeTime("a", "Conv", 3.0, "FastProvider"), NodeTime("b", "Erf", 1.0)], "FastProvider")
    'CPUExecutionProvider ran 1 of 2 nodes (Erf), 25 % of the time'
    """
    nodes = list(nodes)
    others = [node for node in nodes if node.provider != provider]
    if not others:
        return None
    total = sum(node.ms for node in nodes)
    operators = [name for name, _, _ in summed(others, lambda node: node.operator)]
    shown = ", ".join(operators[:SHOWN]) + (f" and {len(operators) - SHOWN} more" if len(operators) > SHOWN else "")
    share = f", {100 * sum(node.ms for node in others) / total:.0f} % of the time" if total else ""
    who = ", ".join(sorted({node.provider or "an unknown provider" for node in others}))
    return f"{who} ran {len(others)} of {len(nodes)} nodes ({shown}){share}"
