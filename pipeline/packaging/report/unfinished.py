"""The page of an unfinished run: what is known so far."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.core.budget import show
from pipeline.core.candidate import Candidate
from pipeline.core.run import Trial
from pipeline.core.statistics import Estimate
from pipeline.foreign_text import clean_text
from pipeline.packaging.report import plots
from pipeline.packaging.report.recorded_run import RecordedRun
from pipeline.packaging.report.template import render
from pipeline.system.units import format_bytes, format_count, format_duration

__all__ = ["device_text", "unfinished_page"]

SHOWN = ("target", "model", "data", "unlabelled", "weights", "searcher", "reward", "trials", "seed")
"""What is shown of the job, in this order."""


def unfinished_page(run: RecordedRun) -> bytes:
    """The page, in UTF-8."""
    trials, feasible = run.trials("search"), [evaluation.feasible for evaluation in run.evaluations]
    dense, best = run.dense, run.best()
    thinnest = next((trial.candidate for trial in (*run.trials("thinnest"), *run.trials("uniform"))), None)
    limit = next((c.limit for c in run.constraints if c.metric.key == "latency_p50" and c.relative), None)
    phases = run.journal.phases if run.journal else ()
    with np.errstate(all="ignore"):
        return render(
            "unfinished.html",
            name=run.name,
            model=clean_text(str(run.job.get("model", "a network"))),
            device=device_text(run),
            remarks=run.remarks,
            stage=phases[-1][0] if phases else "",
            job=_job_rows(run.job),
            networks=[
                _network(title, candidate)
                for title, candidate in (("dense", dense), ("thinnest plan", thinnest), ("best so far", best and best.candidate))
                if candidate
            ],
            trials=trials,
            asked=clean_text(str(run.job.get("trials", ""))),
            within=sum(feasible),
            failed=sum(trial.candidate.failure is not None for trial in trials),
            search=plots.search_chart(trials, dense, feasible, limit, best.candidate if best else None),
            best_chart=plots.best_score_chart(trials, feasible),
            not_drawn=plots.drawn_trials(trials),
            best=best,
            bars=plots.width_bars(_widths(best, dense)),
            choices=run.journal.choices if run.journal else (),
            forecasts=[(forecast.made, forecast.text) for forecast in run.journal.forecasts] if run.journal else (),
            phases=[(name, f"{seconds:.1f} s") for name, seconds in _summed(phases).items()],
            total=format_duration(sum(seconds for _, seconds in phases)),
        )


def device_text(run: RecordedRun) -> str:
    """The name of the device in the profile."""
    profile = run.job.get("profile")
    device = profile.get("device") if isinstance(profile, dict) else None
    return clean_text(str(device.get("name", "a device"))) if isinstance(device, dict) else "a device"


def _job_rows(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, clean_text(str(job[name]))) for name in SHOWN if job.get(name) is not None]
    budget = job.get("budget")
    limits = [f"{key} <= {text}" for key, text in budget.items()] if isinstance(budget, dict) else []
    return [*rows, *([("budget", clean_text(", ".join(limits)))] if limits else [])]


def _network(title: str, candidate: Candidate) -> dict[str, str]:
    measured = candidate.measurement
    return {
        "title": title,
        "latency": _interval(measured.latency_p50_ms) if measured else "not measured",
        "relative": show(measured.relative_p50.value, "ms", relative=True) if measured and measured.relative_p50 else "",
        "score": "" if candidate.score is None else f"{candidate.score:.2f}",
        "params": format_count(candidate.params),
        "macs": format_count(candidate.macs),
        "size": format_bytes(candidate.file_size_bytes),
    }


def _interval(found: Estimate) -> str:
    return f"{show(found.value, 'ms')} [{found.low:.3f}, {found.high:.3f}]"


def _widths(best: Trial | None, dense: Candidate | None) -> dict[str, tuple[int, int, int]]:
    """Group -> (channels kept, channels before, 1). A group inside a dropped block keeps none."""
    if best is None or dense is None:
        return {}
    kept = dict(best.candidate.plan)
    return {name: (min(kept.get(name, 0), before), before, 1) for name, before in dense.plan}


def _summed(phases: tuple[tuple[str, float], ...]) -> dict[str, float]:
    total: dict[str, float] = {}
    for name, seconds in phases:
        total[name] = total.get(name, 0.0) + seconds
    return total
