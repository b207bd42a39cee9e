"""report.html: what came out, what was tried, and how it was measured. It has no scripts and needs no other file."""

import html
import shlex
import statistics
from dataclasses import dataclass

from pipeline.core.alignment import Alignment
from pipeline.core.artifact import Artifact, Row
from pipeline.core.budget.constraint import Constraint
from pipeline.core.measurement import Measurement
from pipeline.core.paired_difference import PairedDrop
from pipeline.core.run import Trial
from pipeline.errors import one_line
from pipeline.packaging.report import plots
from pipeline.packaging.report.chart import Chart
from pipeline.packaging.report.template import render
from pipeline.search.problem import Evaluation
from pipeline.system.units import format_bytes

__all__ = ["headline", "report_page"]


@dataclass(frozen=True)
class Charts:
    """The plots of a page. None where there is nothing to draw."""

    latency: Chart | None = None
    bars: tuple[plots.Bar, ...] = ()
    search: Chart | None = None
    best: Chart | None = None
    alignment: tuple[Chart, ...] = ()
    not_drawn: str = ""
    """A sentence if not all trials are drawn."""


def headline(artifact: Artifact) -> str:
    """The verdict in one or two sentences."""
    limited = [row for row in artifact.rows if row.verdict is not None]
    missed = [row for row in limited if row.verdict != "within"]
    if missed:
        kind = "BUDGET MISSED" if artifact.verdict == "over" else "UNDECIDED"
        text = f"{kind}: {'; '.join(_missed(row, artifact.shipped.drop) for row in missed)}"
    else:
        text = "Budget met: every 95 % confidence interval lies below its limit."
    for row in limited:
        if row.key == "accuracy_drop" and row.drop is None and row.after is not None:
            drop = f"{row.title.partition(' ')[0]} drop"  # of accuracy, or of agreement where there are no labels
            text += f"{'' if text.endswith('.') else '.'} The {drop} has no interval: the verdict uses its value alone."
    return text


def _missed(row: Row, drop: PairedDrop | None) -> str:
    """The text for one row that is not within its limit."""
    _, after, change, limit = row.texts
    interval = f", 95 % interval {row.interval_text}" if row.interval_text else ""
    text = f"{row.title} {after} ({change}{interval}), limit {limit}: {row.verdict}"
    if row.reason:
        return f"{text}, because {row.reason}"
    if row.verdict != "undecided" or row.drop is None or drop is None:
        return text
    if row.test_images_needed is None:
        return f"{text}; the drop is so close to the limit that more test images are unlikely to decide it"
    return f"{text} with {drop.images:,} test images; about {row.test_images_needed:,} would decide it"


def report_page(
    artifact: Artifact,
    trials: list[Trial],
    evaluations: list[Evaluation],
    constraints: tuple[Constraint, ...],
    alignment: Alignment | None = None,
    remarks: tuple[str, ...] = (),
) -> bytes:
    """The page of a finished run, in UTF-8. `evaluations` are those of the search's `trials`, in the same order. `remarks`: what
    is damaged in the run's files.

    A failure never costs the run its artifact. If the plots fail, the page says why. If the page itself fails, a plain page gives
    the reason and the verdict, and says where all figures are.
    """
    try:
        charts, missing = _charts(artifact, trials, evaluations, constraints, alignment), ""
    except Exception as problem:  # figures that cannot be drawn must not cost the page
        charts, missing = Charts(), f"{type(problem).__name__}: {one_line(problem)}"
    try:
        texts = (f"The plots are missing because they could not be drawn: {missing}", *remarks) if missing else remarks
        return _page(artifact, trials, evaluations, alignment, charts, texts)
    except Exception as problem:
        return _plain_page(artifact, problem)


def _charts(
    artifact: Artifact,
    trials: list[Trial],
    evaluations: list[Evaluation],
    constraints: tuple[Constraint, ...],
    alignment: Alignment | None,
) -> Charts:
    limit = next((c.limit for c in constraints if c.metric.key == "latency_p50" and c.relative), None)
    chosen = next((t.candidate for t in trials if t.candidate.plan == artifact.shipped.plan), artifact.shipped)
    feasible = [evaluation.feasible for evaluation in evaluations]
    measured = artifact.shipped.measurement
    return Charts(
        latency=plots.latency_chart(measured) if measured else None,
        bars=plots.width_bars(artifact.widths),
        search=plots.search_chart(trials, artifact.dense, feasible, limit, chosen),
        best=plots.best_score_chart(trials, feasible),
        alignment=plots.alignment_charts(alignment) if alignment else (),
        not_drawn=plots.drawn_trials(trials),
    )


def _plain_page(artifact: Artifact, problem: Exception) -> bytes:
    """A page that needs no template, no plots and no measurement."""
    reason = f"{type(problem).__name__}: {one_line(problem)}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title></head><body>\n<h1>Report</h1>\n'
        f"<p>Verdict: {html.escape(artifact.verdict)}. The full report could not be made ({html.escape(reason)}). All figures "
        "are in artifact.json, beside this page.</p>\n</body></html>\n"
    ).encode()


def _page(
    artifact: Artifact,
    trials: list[Trial],
    evaluations: list[Evaluation],
    alignment: Alignment | None,
    charts: Charts,
    run_remarks: tuple[str, ...],
) -> bytes:
    """The page with `charts`. `run_remarks`: what is missing or damaged."""
    measured = artifact.shipped.measurement
    if measured is None:
        raise ValueError("the artifact holds no measurement")
    feasible = [evaluation.feasible for evaluation in evaluations]
    fingerprint = measured.fingerprint
    return render(
        "page.html",
        artifact=artifact,
        device=fingerprint.device,
        stamp=fingerprint.stamp,
        machine=fingerprint.machine,
        fingerprint=fingerprint,
        headline=headline(artifact),
        score_name=next((row.title for row in artifact.rows if row.key == "accuracy_drop"), "accuracy").removesuffix(" (test)"),
        drop_basis=_drop_basis(artifact.shipped.drop),
        runs=sum(len(block) for process in measured.processes for block in process.latency_ms),
        processes=len(measured.processes),
        charts=charts,
        run_remarks=run_remarks,
        alignment=alignment,
        trials=trials,
        within=sum(feasible),
        failed=sum(trial.candidate.failure is not None for trial in trials),
        creation=_middle([process.session_creation_ms for process in measured.processes], "ms"),
        first_run=_middle([process.first_run_ms for process in measured.processes], "ms"),
        cpu=_middle([process.cpu_ms_per_run for process in measured.processes], "ms"),
        baseline=format_bytes(measured.memory.baseline_bytes) if measured.memory.baseline_bytes else "not known",
        clean=clean_text(measured),
        remarks=measured.remarks,
        command=shlex.join(artifact.command) or "(from Python)",
    )


def _drop_basis(drop: PairedDrop | None) -> str:
    """Says what the interval of the accuracy drop is computed from."""
    if drop is None:
        return ""
    if drop.hits is None:
        return f"Its interval is a bootstrap over the {drop.images:,} test images, on which both networks were tested."
    return (
        f"Of {drop.images:,} test images, only the dense network is right on {drop.hits.only_dense:,.0f}, and only the "
        f"compressed one on {drop.hits.only_after:,.0f}; the interval is Newcombe's for paired proportions."
    )


def clean_text(measured: Measurement) -> str:
    """How many of the timed runs were not preempted, and which runs the latency is computed from."""
    samples = measured.samples
    ways = {
        "clock": "the wall time of all runs is used",
        "clean runs": "only these runs are used",
        "processor time": "the processor time of all runs is used",
        "none": "too few for a verdict",
    }
    return f"{samples.clean} of {samples.total}, of both graphs; {ways[samples.method]}"


def _middle(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.2f} {unit} (median of {len(values)} processes, {min(values):.2f} to {max(values):.2f})"
