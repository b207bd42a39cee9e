"""Plots of a run, as SVG text for the page."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from pipeline.core.alignment import Alignment
from pipeline.core.candidate import Candidate
from pipeline.core.run import Trial
from pipeline.foreign_text import clean_text

__all__ = ["alignment_plot", "latency_plot", "search_plot", "widths_plot"]

DENSE, AFTER, OVER = "#7a869a", "#0b6e4f", "#c0562f"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa4b2",
    "axes.labelcolor": "#2b3440",
    "xtick.color": "#2b3440",
    "ytick.color": "#2b3440",
    "svg.hashsalt": "compress",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "text.parse_math": False,  # dollar signs in a layer's name are not a formula
    "text.usetex": False,
}
LABEL_LIMIT = 60
"""Longest label, in characters."""


def latency_plot(shipped: Candidate) -> str:
    """Every timed run of the shipped file and of the dense graph, with medians and their intervals."""
    measured = shipped.measurement
    if measured is None or measured.reference_p50_ms is None:
        return ""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 1.9), layout="constrained")
        axes = figure.subplots()
        rows = (
            (
                "dense",
                [run for p in measured.processes for block in p.reference_latency_ms for run in block],
                measured.reference_p50_ms,
                DENSE,
            ),
            (
                "shipped",
                [run for p in measured.processes for block in p.latency_ms for run in block],
                measured.latency_p50_ms,
                AFTER,
            ),
        )
        limit = max(sorted(runs)[int(0.98 * (len(runs) - 1))] for _, runs, _, _ in rows)
        for position, (_, runs, p50, colour) in enumerate(reversed(rows)):
            shown = [run for run in runs if run <= limit]
            axes.plot(shown, _spread(position, len(shown)), ".", color=colour, alpha=0.25, markersize=3)
            axes.plot([p50.low, p50.high], [position, position], "-", color="black", linewidth=2)
            axes.plot([p50.value], [position], "|", color="black", markersize=18, markeredgewidth=2)
        axes.set_yticks([0, 1], ["shipped", "dense"])
        axes.set_ylim(-0.6, 1.6)
        axes.set_xlim(0, limit * 1.03)
        axes.set_xlabel("latency, ms (dot: run; bar: median with its 95 % interval; the slowest 2 % are not drawn)")
        return _svg(figure, "Latency of every timed run of the dense and the shipped network")


def search_plot(
    trials: Sequence[Trial], dense: Candidate, feasible: Sequence[bool], limit: float | None, chosen: Candidate
) -> str:
    """Score against relative latency of every trial, and the best score so far."""
    points = [
        (trial.candidate.measurement.relative_p50.value, trial.candidate.score or 0.0, ok)
        for trial, ok in zip(trials, feasible, strict=True)
        if trial.candidate.measurement and trial.candidate.measurement.relative_p50
    ]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for inside, colour, label in ((True, AFTER, "within the budget"), (False, OVER, "over it")):
            chosen_points = [(x, y) for x, y, ok in points if ok is inside]
            left.plot(
                [100 * x for x, _ in chosen_points],
                [y for _, y in chosen_points],
                "o",
                color=colour,
                markersize=4,
                alpha=0.7,
                label=label,
            )
        if limit is not None:
            left.axvline(100 * limit, color="black", linewidth=1, linestyle="--", label="latency budget")
        if chosen.measurement and chosen.measurement.relative_p50 and chosen.score is not None:
            left.plot(
                [100 * chosen.measurement.relative_p50.value],
                [chosen.score],
                "o",
                markersize=11,
                fillstyle="none",
                color="black",
                label="chosen",
            )
        left.set_xlabel("latency p50, % of dense")
        left.set_ylabel("score before fine-tuning")
        left.legend(frameon=False, fontsize=8)
        best, curve = 0.0, []
        for trial, ok in zip(trials, feasible, strict=True):
            best = max(best, (trial.candidate.score or 0.0) if ok else 0.0)
            curve.append(best)
        right.step(range(1, len(curve) + 1), curve, where="post", color=AFTER)
        right.set_xlabel("trial")
        right.set_ylabel("best score within the budget")
        return _svg(figure, "Score against latency of every trial, and the best so far")


def widths_plot(widths: Mapping[str, tuple[int, int, int]]) -> str:
    """Kept channels of each group, from input to output."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.19 * len(widths)), layout="constrained")
        axes = figure.subplots()
        places = range(len(widths))
        outputs = [(kept * bundle, before * bundle) for kept, before, bundle in widths.values()]
        axes.barh(places, [before for _, before in outputs], color="#dfe4ea", height=0.75, label="dense")
        axes.barh(places, [kept for kept, _ in outputs], color=AFTER, height=0.75, label="kept")
        for place, (kept, before) in zip(places, outputs, strict=True):
            axes.text(before, place, f" {kept} of {before}", va="center", fontsize=7, color="#2b3440")
        axes.set_yticks(list(places), [clean_text(name, LABEL_LIMIT) for name in widths], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * max(before for _, before in outputs))
        axes.set_xlabel("channels")
        return _svg(figure, "Kept channels of each group")


def alignment_plot(alignment: Alignment) -> str:
    """Latency of each pair of convolutions against the width between them. Dominated widths are hollow."""
    if not alignment.sweeps:
        return ""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.2), layout="constrained")
        for axes, sweep in zip(figure.subplots(1, len(alignment.sweeps), squeeze=False)[0], alignment.sweeps, strict=True):
            widths = sorted(sweep.latency_ms)
            middle = [min(sweep.latency_ms[width]) for width in widths]
            axes.plot(widths, middle, "-", color=DENSE, linewidth=1)
            for width, latency_ms in zip(widths, middle, strict=True):
                fill = "none" if width in sweep.dominated else "full"
                axes.plot([width], [latency_ms], "o", color=AFTER, markersize=5, fillstyle=fill)
            axes.set_xticks(widths[::2])
            axes.set_ylim(0, None)
            axes.set_xlabel(f"channels of {clean_text(sweep.pair.name, LABEL_LIMIT)}")
            axes.set_ylabel("latency, ms")
        return _svg(figure, "Latency against width")


def _spread(position: int, count: int) -> list[float]:
    """A fixed jitter, so that the same run always gives the same page."""
    return [position + 0.3 * (((index * 0.618034) % 1.0) - 0.5) for index in range(count)]


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
