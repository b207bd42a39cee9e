"""Plots of a run, as charts for the page."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.core.alignment import Alignment, Sweep
from pipeline.core.budget import show
from pipeline.core.candidate import Candidate
from pipeline.core.measurement import Measurement
from pipeline.core.run import Trial
from pipeline.core.statistics import Estimate
from pipeline.foreign_text import clean_text
from pipeline.packaging.report.chart import LABEL_LIMIT, Axis, Chart, Line, Point, Tip, axis_of, in_plot, spread_evenly
from pipeline.system.units import format_count

__all__ = [
    "Bar",
    "alignment_charts",
    "best_score_chart",
    "drawn_trials",
    "latency_chart",
    "search_chart",
    "trial_tip",
    "width_bars",
]

MOST_RUNS = 300
"""Of more timed runs of a graph, this many are drawn."""
MOST_TRIALS = 1000
"""Of more trials, the first are drawn."""
MOST_WIDTHS = 40
"""Of a plan with more groups, these are listed."""
JITTER = 24.0
"""Height of a row of runs, in percent of the plot."""


@dataclass(frozen=True)
class Bar:
    """Channels of one group."""

    name: str
    kept: int
    before: int
    share: float
    """Length of the bar of all channels, in percent of the longest."""
    kept_share: float
    """Length of the bar of the kept channels."""


def latency_chart(measured: Measurement) -> Chart | None:
    """Every timed run of the shipped file and of the dense graph, with medians and their intervals.

    The slowest 2 % are not drawn. None without runs of the dense graph.
    """
    if measured.reference_p50_ms is None:
        return None
    rows = (
        (
            "dense",
            [run for p in measured.processes for block in p.reference_latency_ms for run in block],
            measured.reference_p50_ms,
        ),
        ("after", [run for p in measured.processes for block in p.latency_ms for run in block], measured.latency_p50_ms),
    )
    if not all(runs and in_plot(runs) for _, runs, _ in rows):
        return None
    limit = max(sorted(runs)[int(0.98 * (len(runs) - 1))] for _, runs, _ in rows)
    x = axis_of("latency, ms", [limit], from_zero=True, room=0.03)
    points, lines = [], []
    for middle, (kind, runs, p50) in zip((27.0, 73.0), rows, strict=True):
        shown = spread_evenly([run for run in runs if run <= limit], MOST_RUNS)
        points += [Point(x.share(run), _jitter(middle, index), f"run {kind}") for index, run in enumerate(shown)]
        low, value, high = (x.share(min(each, limit)) for each in (p50.low, p50.value, p50.high))
        lines += [Line(low, middle, high, middle, "interval"), Line(value, middle - 14, value, middle + 14, "median")]
    y = Axis("", 0.0, 100.0, ((73.0, "dense"), (27.0, "shipped")))
    title = "Latency of every timed run of the dense and the shipped network"
    return Chart("latency", title, x, y, tuple(points), tuple(lines), height=120)


def search_chart(
    trials: Sequence[Trial], dense: Candidate | None, feasible: Sequence[bool], limit: float | None, chosen: Candidate | None
) -> Chart | None:
    """Score against relative latency of every trial. `limit`: the latency budget as a share of the dense network's latency.

    None if no trial has both figures.
    """
    channels = dict(dense.plan) if dense else {}
    found = [
        (100 * relative.value, trial.candidate.score or 0.0, ok, trial)
        for trial, ok in zip(trials, feasible, strict=True)
        if (relative := relative_p50(trial.candidate)) and in_plot((100 * relative.value, trial.candidate.score or 0.0))
    ][:MOST_TRIALS]
    if not found:
        return None
    x = axis_of("latency p50, % of dense", [*(x for x, *_ in found), *([100 * limit] if limit is not None else [])])
    y = axis_of("score before fine-tuning", [y for _, y, *_ in found])
    points = [
        Point(
            x.share(latency),
            100 - y.share(score),
            "within" if ok else "over",
            trial_tip(trial, channels, "within the budget" if ok else "over the budget"),
        )
        for latency, score, ok, trial in found
    ]
    marked = relative_p50(chosen) if chosen else None
    if chosen and marked and chosen.score is not None and in_plot((marked.value, chosen.score)):
        points.insert(0, Point(x.share(100 * marked.value), 100 - y.share(chosen.score), "chosen"))
    lines = (Line(at := x.share(100 * limit), 0, at, 100, "limit"),) if limit is not None else ()
    legend = (
        ("dot within", "within the budget"),
        ("dot over", "over it"),
        *((("stroke limit", "latency budget"),) if lines else ()),
        *((("dot chosen", "chosen"),) if marked else ()),
    )
    return Chart("search", "Score against latency of every trial", x, y, tuple(points), lines, legend)


def best_score_chart(trials: Sequence[Trial], feasible: Sequence[bool]) -> Chart | None:
    """The best score within the budget after each trial. None if no trial is within it."""
    curve: list[tuple[int, float]] = []
    for number, (trial, ok) in enumerate(zip(trials, feasible, strict=True), start=1):
        score = trial.candidate.score
        if ok and score is not None and in_plot((score,)) and (not curve or score > curve[-1][1]):
            curve.append((number, score))
    if not curve:
        return None
    x, y = axis_of("trial", (1, len(trials)), room=0.0), axis_of("best score within the budget", [score for _, score in curve])
    lines = []
    for place, (number, score) in enumerate(curve):
        at, height = x.share(number), 100 - y.share(score)
        end = x.share(curve[place + 1][0] if place + 1 < len(curve) else len(trials))
        lines.append(Line(at, height, end, height, "best"))
        if place:
            lines.append(Line(at, 100 - y.share(curve[place - 1][1]), at, height, "best"))
    return Chart("best", "The best score within the budget after each trial", x, y, (), tuple(lines))


def alignment_charts(alignment: Alignment) -> tuple[Chart, ...]:
    """Latency of each pair of convolutions against the width between them. Dominated widths are hollow."""
    return tuple(_sweep_chart(sweep, number) for number, sweep in enumerate(alignment.sweeps, start=1) if sweep.latency_ms)


def _sweep_chart(sweep: Sweep, number: int) -> Chart:
    widths = sorted(sweep.latency_ms)
    fastest = [min(sweep.latency_ms[width]) for width in widths]
    x = axis_of(f"channels of {clean_text(sweep.pair.name, LABEL_LIMIT)}", widths)
    y = axis_of("latency, ms", fastest, from_zero=True)
    places = [(x.share(width), 100 - y.share(ms)) for width, ms in zip(widths, fastest, strict=True)]
    points = tuple(
        Point(*place, "hollow" if width in sweep.dominated else "after", (("", f"{width} channels"), ("latency", show(ms, "ms"))))
        for place, width, ms in zip(places, widths, fastest, strict=True)
    )
    lines = tuple(Line(*before, *after, "course") for before, after in itertools.pairwise(places))
    return Chart(f"alignment-{number}", "Latency against width", x, y, points, lines, height=200)


def width_bars(widths: Mapping[str, tuple[int, int, int]]) -> tuple[Bar, ...]:
    """Kept channels of each group, from input to output. `widths` are those of an artifact."""
    longest = max([*(before * bundle for _, before, bundle in widths.values()), 1])
    return tuple(
        Bar(
            clean_text(name, LABEL_LIMIT),
            kept * bundle,
            before * bundle,
            round(100 * before * bundle / longest, 2),
            round(100 * kept * bundle / longest, 2),
        )
        for name, (kept, before, bundle) in widths.items()
    )


def trial_tip(trial: Trial, channels: Mapping[str, int], note: str = "") -> Tip:
    """The plan and the figures of a trial. `channels`: group -> its channels in the dense network; empty where not known."""
    candidate = trial.candidate
    rows = [("", f"trial {trial.number}{f', {note}' if note else ''}")]
    if candidate.score is not None:
        rows.append(("score", f"{candidate.score:.2f}"))
    if candidate.measurement:
        p50, relative = candidate.measurement.latency_p50_ms, candidate.measurement.relative_p50
        interval = f" [{100 * relative.low:.1f}, {100 * relative.high:.1f}]" if relative else ""
        share = f", {100 * relative.value:.1f} % of dense{interval}" if relative else ""
        rows.append(("latency p50", f"{show(p50.value, 'ms')}{share}"))
    if candidate.failure:
        rows.append(("failed", clean_text(f"{candidate.failure.kind}: {candidate.failure.detail}", 200)))
    rows.append(("size", f"{format_count(candidate.params)} parameters, {format_count(candidate.macs)} MACs"))
    return (*rows, ("plan", plan_text(candidate, channels)))


def plan_text(candidate: Candidate, channels: Mapping[str, int]) -> str:
    """The widths of a plan in words: 'stem 24 of 64, head 8 of 16; without the block body.3'."""
    widths = list(candidate.plan)
    shown = [
        f"{clean_text(name, LABEL_LIMIT)} {width}" + (f" of {channels[name]}" if name in channels else "")
        for name, width in widths[:MOST_WIDTHS]
    ]
    more = [f"and {len(widths) - MOST_WIDTHS} more"] if len(widths) > MOST_WIDTHS else []
    dropped = [clean_text(name, LABEL_LIMIT) for name in candidate.plan.dropped[:MOST_WIDTHS]]
    without = f"; without {', '.join(dropped)}" if dropped else ""
    return ", ".join(shown + more) + without


def drawn_trials(trials: Sequence[Trial]) -> str:
    """A sentence if not all trials are drawn; otherwise empty."""
    return f"The first {MOST_TRIALS:,} of {len(trials):,} trials are drawn." if len(trials) > MOST_TRIALS else ""


def relative_p50(candidate: Candidate) -> Estimate | None:
    """The latency as a share of the dense network's, if it was measured."""
    return candidate.measurement.relative_p50 if candidate.measurement else None


def _jitter(middle: float, index: int) -> float:
    """A fixed jitter, so that the same run always gives the same page."""
    return round(middle + JITTER * (((index * 0.618034) % 1.0) - 0.5), 2)
