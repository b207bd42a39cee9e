"""The page of an inspection: a picture of the network, coloured by the share of time. It has no scripts and needs no file."""

from pathlib import Path
from typing import Any

from pipeline.graph.layer_facts import LayerFacts
from pipeline.inspection.inspect_network import Inspection, PlanFacts
from pipeline.packaging.report.template import render
from pipeline.system.units import format_bytes, format_count, format_duration

__all__ = ["inspection_page"]

NARROWEST = 40
"""Width in percent of the box of a layer with one channel. Names must fit into it."""


def inspection_page(found: Inspection) -> bytes:
    """The page, in UTF-8. Text from the network's file is escaped."""
    others = ", ".join(f"{operator} {ms:.3f} ms" for operator, ms in found.others_ms.items())
    timed = any(layer.latency_ms is not None for layer in found.layers)
    return render(
        "page.html",
        Path(__file__).parent,
        found=found,
        plans=_plans(found.dense, found.thinnest),
        layers=_layers(found),
        others=others,
        measure="time" if timed else "multiply-accumulate operations (MACs)",
        search=_search(found),
    )


def _layers(found: Inspection) -> list[dict[str, Any]]:
    costs = [_cost(layer) for layer in found.layers]
    total, most = sum(costs) + sum(found.others_ms.values()), max([*costs, 1e-12])
    widest = max([*(layer.outputs[0] for layer in found.layers if layer.outputs), 1])
    return [
        {
            "name": layer.title,
            "kind": layer.kind,
            "outputs": "x".join(str(size) for size in layer.outputs),
            "groups": layer.groups,
            "title": ", ".join(layer.groups) or layer.reason,
            "cost": f"{100 * cost / total:.1f} %" if total else "",
            "alpha": round(0.75 * cost / most, 3),
            "width": round(NARROWEST + (100 - NARROWEST) * (layer.outputs[0] if layer.outputs else 1) / widest, 1),
        }
        for layer, cost in zip(found.layers, costs, strict=True)
    ]


def _cost(layer: LayerFacts) -> float:
    return float(layer.macs) if layer.latency_ms is None else layer.latency_ms


def _plans(dense: PlanFacts, thinnest: PlanFacts) -> list[tuple[str, str, str]]:
    rows = [
        ("parameters", format_count(dense.params), format_count(thinnest.params)),
        ("MACs", format_count(dense.macs), format_count(thinnest.macs)),
        ("file size", format_bytes(dense.file_size_bytes), format_bytes(thinnest.file_size_bytes)),
    ]
    if dense.latency_p50_ms and thinnest.latency_p50_ms:
        rows.append(("latency p50", f"{dense.latency_p50_ms.value:.3f} ms", f"{thinnest.latency_p50_ms.value:.3f} ms"))
    return rows


def _search(found: Inspection) -> str:
    if found.search_s is None:
        return ""
    scoring = "" if found.scored else ", without scoring"
    return f"about {format_duration(found.search_s)} for {found.trials} trials{scoring}, without training"
