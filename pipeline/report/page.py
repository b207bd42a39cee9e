"""report.html: what came out, what was tried, how it was measured; no script, no file beside it."""

import shlex
import statistics
from pathlib import Path

import jinja2

from pipeline.alignment import Alignment
from pipeline.artifact import Artifact
from pipeline.budget.constraint import Constraint
from pipeline.report.plots import alignment_plot, latency_plot, search_plot, widths_plot
from pipeline.run import Trial
from pipeline.search.problem import Assessment
from pipeline.units import format_bytes

__all__ = ["headline", "report_page"]


def headline(artifact: Artifact) -> str:
    """The verdict in one sentence."""
    missed = [row for row in artifact.rows if row.verdict not in (None, "within")]
    if not missed:
        return "Within the budget, with the whole of every interval."
    parts = (f"{row.title} {row.texts[1]} ({row.texts[2]}) against {row.texts[3]}: {row.verdict}" for row in missed)
    return f"{'BUDGET MISSED' if artifact.verdict == 'over' else 'NOT DECIDED'}: {'; '.join(parts)}"


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


def _middle(values: list[float], unit: str) -> str:
    return f"{statistics.median(values):.2f} {unit} (median of {len(values)} processes, {min(values):.2f} to {max(values):.2f})"
