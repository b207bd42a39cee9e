"""The page of several runs: results, accuracy against latency, widths and settings side by side."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.core.budget import show
from pipeline.core.statistics import Estimate
from pipeline.foreign_text import clean_text
from pipeline.packaging.report import plots
from pipeline.packaging.report.chart import LABEL_LIMIT, Chart, Line, Point, axis_of, in_plot
from pipeline.packaging.report.comparison import Compared, Latency, clusters, compare, differences, pareto_front, remarks_of
from pipeline.packaging.report.recorded_run import RecordedRun
from pipeline.packaging.report.template import render
from pipeline.packaging.report.unfinished import device_text
from pipeline.system.units import format_bytes, format_count, format_duration

__all__ = ["PRINTED_DIFFERENCES", "comparison_page"]

COLOURS = 8
"""Number of colours in base.html. Letters tell runs apart where there are more."""
MOST_TRIALS = 400
"""Of a run with more trials, the first are drawn."""
PRINTED_WIDTHS = 18
PRINTED_DIFFERENCES = 10
"""Rows of widths and of differences on paper, so that five runs need two pages. The page on the screen has all of them."""


@dataclass(frozen=True)
class Widths:
    """The widths of runs of one network."""

    runs: tuple[Compared, ...]
    rows: tuple[tuple[str, int, tuple[int | None, ...]], ...]
    """(group, channels in the dense network, channels that each run keeps; None where the run has no such group)"""
    longest: int


def comparison_page(recorded: Sequence[RecordedRun]) -> bytes:
    """The page, in UTF-8. There must be at least one run."""
    runs = compare(recorded)
    colours = {run.letter: f"c{number % COLOURS}" for number, run in enumerate(runs)}
    with np.errstate(all="ignore"):
        different, equal = differences(runs)
        networks = _widths(runs)
        return render(
            "comparison.html",
            runs=runs,
            title=f"{len(runs)} {'budgets of one run' if len({run.run.folder for run in runs}) == 1 else 'runs'}",
            colours=colours,
            remarks=remarks_of(runs),
            own_remarks=[(run.letter, remark) for run in runs for remark in run.run.remarks],
            rows=_rows(runs),
            charts=[
                chart
                for chart in (
                    _result_chart("latency", "latency p50, ms", runs, colours, lambda run: run.latency_ms),
                    _result_chart("relative", "latency p50, % of dense", runs, colours, _percent),
                )
                if chart
            ],
            trials=_trials_chart(runs, colours),
            networks=networks,
            printed_widths=max(4, PRINTED_WIDTHS // max(1, len(networks))),
            printed_differences=PRINTED_DIFFERENCES,
            differences=different,
            equal=equal,
        )


def _percent(run: Compared) -> Estimate | None:
    return run.relative.scaled(100) if run.relative else None


def _result_chart(name: str, label: str, runs: Sequence[Compared], colours: dict[str, str], latency: Latency) -> Chart | None:
    """The score of each run against its latency, and the Pareto front of each group of comparable runs."""
    known = [
        (run, found, run.score)
        for run in runs
        if (found := latency(run)) and run.score is not None and in_plot((found.low, found.high, run.score))
    ]
    if not known:
        return None
    kinds = list(dict.fromkeys(run.judged for run, *_ in known))
    x = axis_of(label, [each for _, found, _ in known for each in (found.low, found.high)])
    y = axis_of(f"{' or '.join(kinds)}, %", [score for *_, score in known], room=0.12)
    places = {run.letter: (x.share(found.value), 100 - y.share(score)) for run, found, score in known}
    points = tuple(
        Point(*places[run.letter], f"letter run {colours[run.letter]}{'' if run.finished else ' open'}", _tip(run), run.letter)
        for run, *_ in known
    )
    intervals = [
        Line(x.share(found.low), (at := places[run.letter][1]), x.share(found.high), at, "interval") for run, found, _ in known
    ]
    drawn = [run for run, *_ in known]
    front = [
        Line(*corner, "front")
        for group in clusters(drawn)
        for one, other in itertools.pairwise(pareto_front(group, latency))
        for corner in _stairs(places[one.letter], places[other.letter])
    ]
    legend = (
        *((("stroke front", "Pareto front"),) if front else ()),
        *(
            (("dot letter open", "unfinished: best plan so far, on validation data"),)
            if any(not run.finished for run in drawn)
            else ()
        ),
    )
    title = f"{y.label} of each run against its {label}"
    return Chart(f"runs-{name}", title, x, y, points, (*intervals, *front), legend, height=300)


def _stairs(one: tuple[float, float], other: tuple[float, float]) -> tuple[tuple[float, float, float, float], ...]:
    return (*one, other[0], one[1]), (other[0], one[1], *other)


def _tip(run: Compared) -> tuple[tuple[str, str], ...]:
    rows = [("", f"{run.letter}: {run.run.name}{'' if run.finished else ' (unfinished)'}"), (run.judged, f"{run.score:.2f} %")]
    if run.latency_ms:
        rows.append(("latency p50", _interval(run.latency_ms, "ms")))
    if run.relative:
        rows.append(("of dense", _share(run.relative)))
    channels = dict(run.run.dense.plan) if run.run.dense else {}
    return (*rows, *([("plan", plots.plan_text(run.candidate, channels))] if run.candidate else []))


def _trials_chart(runs: Sequence[Compared], colours: dict[str, str]) -> Chart | None:
    """The validation score of every trial against its relative latency."""
    journals: dict[Path, list[Compared]] = {}  # the budgets of one run share its trials
    for run in runs:
        journals.setdefault(run.run.folder, []).append(run)
    first = {group[0].letter: ", ".join(run.letter for run in group) for group in journals.values()}
    found = [
        (run, trial, 100 * relative.value, trial.candidate.score)
        for run in runs
        if run.letter in first
        for trial in run.run.trials("search")[:MOST_TRIALS]
        if (relative := plots.relative_p50(trial.candidate))
        and trial.candidate.score is not None
        and in_plot((100 * relative.value, trial.candidate.score))
    ]
    if not found:
        return None
    x = axis_of("latency p50, % of dense", [latency for *_, latency, _ in found])
    y = axis_of("score before fine-tuning", [score for *_, score in found])
    channels = {run.letter: dict(run.run.dense.plan) if run.run.dense else {} for run in runs}
    points = tuple(
        Point(
            x.share(latency),
            100 - y.share(score),
            f"run {colours[run.letter]} trial",
            plots.trial_tip(trial, channels[run.letter], f"run {first[run.letter]}"),
        )
        for run, trial, latency, score in found
    )
    legend = tuple((f"dot run {colours[letter]}", letters) for letter, letters in first.items())
    return Chart("trials", "Score against latency of every trial of all runs", x, y, points, (), legend, height=300)


def _rows(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """(title, text for each run) of the table of results. A row that is empty for all runs is left out."""
    columns = [_column(run) for run in runs]
    titles = list(dict.fromkeys(title for column in columns for title in column))
    rows = [(title, [column.get(title, "") for column in columns]) for title in titles]
    return [(title, texts) for title, texts in rows if any(texts)]


def _column(run: Compared) -> dict[str, str]:
    artifact, candidate = run.run.artifact, run.candidate
    seconds = artifact.phase_seconds.values() if artifact else [s for _, s in run.run.journal.phases] if run.run.journal else []
    trials, within = run.run.trials("search"), sum(evaluation.feasible for evaluation in run.run.evaluations)
    known = {
        "verdict": artifact.verdict if artifact else "unfinished",
        "network": clean_text(str(run.run.job.get("model", "")), 200),
        "device": device_text(run.run),
        "figures": f"{run.fingerprint.stamp} ({run.fingerprint.machine})" if run.fingerprint else "",
        "latency p50": _interval(run.latency_ms, "ms") if run.latency_ms else "",
        "latency, % of dense": _share(run.relative) if run.relative else "",
        "dense latency p50": _interval(run.dense_ms, "ms") if run.dense_ms else "",
    }
    if artifact:
        for row in artifact.rows:
            if row.key == "accuracy_drop":
                dense, after, change, _ = row.texts
                title = clean_text(row.title, 60)
                known |= {f"{title}, dense": dense, title: after, "change": f"{change} {row.interval_text}".strip()}
        known["removed"] = clean_text(artifact.removed_text)
        known["created"] = clean_text(artifact.created, 60)
    elif run.score is not None:
        known["validation score, not tuned"] = f"{run.score:.2f}"
    if candidate:
        known |= {
            "parameters": _of(candidate.params, run.dense.params if run.dense else 0, format_count(candidate.params)),
            "MACs": _of(candidate.macs, run.dense.macs if run.dense else 0, format_count(candidate.macs)),
            "file size": _of(
                candidate.file_size_bytes, run.dense.file_size_bytes if run.dense else 0, format_bytes(candidate.file_size_bytes)
            ),
        }
    known["trials"] = f"{len(trials)}, {within} within the budget" if trials else ""
    known["time"] = format_duration(total) if (total := sum(seconds)) and in_plot((total,)) else ""
    return known


def _widths(runs: Sequence[Compared]) -> list[Widths]:
    """The widths of the runs, for each network; networks are told apart by their dense graphs."""
    found: dict[str, list[Compared]] = {}
    for run in runs:
        if run.candidate and run.run.dense:
            found.setdefault(run.run.dense.structure, []).append(run)
    return [_table(tuple(group)) for group in found.values()]


def _table(runs: tuple[Compared, ...]) -> Widths:
    known = [_kept(run) for run in runs]
    before = {name: channels for widths in reversed(known) for name, (_, channels) in widths.items()}
    names = dict.fromkeys(name for widths in known for name in widths)
    rows = tuple(
        (clean_text(name, LABEL_LIMIT), before[name], tuple(widths[name][0] if name in widths else None for widths in known))
        for name in names
    )
    return Widths(runs, rows, max([*before.values(), 1]))


def _kept(run: Compared) -> dict[str, tuple[int, int]]:
    """Group -> (outputs kept, outputs before)."""
    if run.run.artifact:
        return {name: (kept * bundle, before * bundle) for name, (kept, before, bundle) in run.run.artifact.widths.items()}
    plan = dict(run.candidate.plan) if run.candidate else {}
    return {
        name: (min(plan.get(name, 0), channels), channels) for name, channels in (run.run.dense.plan if run.run.dense else ())
    }


def _interval(found: Estimate, unit: str) -> str:
    text = show(found.value, "ms")
    return f"{text} [{found.low:.3f}, {found.high:.3f}]" if found.high > found.low else text


def _share(found: Estimate) -> str:
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _of(value: float, whole: float, text: str) -> str:
    return f"{text} ({100 * value / whole:.1f} %)" if whole else text
