"""report.html: what came out, what was tried, how it was measured; no script, no file beside it."""

import shlex
import statistics
from pathlib import Path

import jinja2

from pipeline.alignment import Alignment
from pipeline.artifact import Artifact, Row
from pipeline.budget.constraint import Constraint
from pipeline.paired import PairedDrop
from pipeline.report.plots import alignment_plot, latency_plot, search_plot, widths_plot
from pipeline.run import Trial
from pipeline.search.problem import Assessment
from pipeline.units import format_bytes

__all__ = ["headline", "report_page"]


def headline(artifact: Artifact) -> str:
    """The verdict in a sentence or two."""
    limited = [row for row in artifact.rows if row.verdict is not None]
    missed = [row for row in limited if row.verdict != "within"]
    if missed:
        kind = "BUDGET MISSED" if artifact.verdict == "over" else "NOT DECIDED"
        text = f"{kind}: {'; '.join(_missed(row, artifact.shipped.drop) for row in missed)}"
    else:
        text = "Budget met: every 95 % confidence interval lies below its limit."
    if any(row.key == "accuracy_drop" and row.drop is None and row.after is not None for row in limited):
        text += f"{'' if text.endswith('.') else '.'} The accuracy drop has no interval: it is judged by its value alone."
    return text


def _missed(row: Row, drop: PairedDrop | None) -> str:
    """One line of the table that is not within its limit."""
    _, after, change, limit = row.texts
    interval = f", 95 % interval {row.interval_text}" if row.interval_text else ""
    text = f"{row.title} {after} ({change}{interval}) against {limit}: {row.verdict}"
    if row.verdict != "undecided" or row.drop is None or drop is None:
        return text
    if row.test_images_needed is None:
        return f"{text}; the drop is so close to the limit that no number of test images is likely to decide it"
    return f"{text} with {drop.images:,} test images; about {row.test_images_needed:,} would decide it"


def report_page(
    artifact: Artifact,
    trials: list[Trial],
    assessments: list[Assessment],
    constraints: tuple[Constraint, ...],
    alignment: Alignment | None = None,
) -> bytes:
    """The page of a finished run. `assessments` judge the `trials` of the search, in the same order."""
    measured = artifact.shipped.measurement
    if measured is None:
        raise ValueError("an artifact without a measurement has no report")
    feasible = [assessment.feasible for assessment in assessments]
    limit = next((c.limit for c in constraints if c.metric.key == "latency_p50" and c.relative), None)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    chosen = next((t.candidate for t in trials if t.candidate.plan == artifact.shipped.plan), artifact.shipped)
    fingerprint = measured.fingerprint
    text = template.render(
        artifact=artifact,
        device=fingerprint.device,
        stamp=fingerprint.stamp,
        machine=fingerprint.machine,
        fingerprint=fingerprint,
        headline=headline(artifact),
        drop_basis=_drop_basis(artifact.shipped.drop),
        runs=sum(len(block) for process in measured.processes for block in process.latency_ms),
        processes=len(measured.processes),
        latency_svg=latency_plot(artifact.shipped),
        widths_svg=widths_plot(artifact.widths),
        search_svg=search_plot(trials, artifact.dense, feasible, limit, chosen) if trials else "",
        alignment=alignment,
        alignment_svg=alignment_plot(alignment) if alignment else "",
        trials=trials,
        within=sum(feasible),
        failed=sum(trial.candidate.failure is not None for trial in trials),
        creation=_middle([process.session_creation_ms for process in measured.processes], "ms"),
        first_run=_middle([process.first_run_ms for process in measured.processes], "ms"),
        cpu=_middle([process.cpu_ms_per_run for process in measured.processes], "ms"),
        baseline=format_bytes(measured.memory.baseline_bytes) if measured.memory.baseline_bytes else "not known",
        remarks=measured.remarks,
        command=shlex.join(artifact.command) or "(from Python)",
    )
    return text.encode()


def _drop_basis(drop: PairedDrop | None) -> str:
    """What the interval of the accuracy drop is made from."""
    if drop is None:
        return ""
    if drop.hits is None:
        return f"Its interval is a bootstrap over the {drop.images:,} test images, both networks on the same ones."
    return (
        f"Of {drop.images:,} test images the dense network alone is right on {drop.hits.only_dense:,.0f}, the compressed one "
        f"alone on {drop.hits.only_after:,.0f}; the interval is Newcombe's for paired proportions."
    )


def _middle(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.2f} {unit} (median of {len(values)} processes, {min(values):.2f} to {max(values):.2f})"
