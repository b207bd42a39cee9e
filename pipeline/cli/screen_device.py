"""Screen for a device: measurements, comparisons, calibrations and findings."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.core.device_state import DeviceState
from pipeline.core.latency_predictor import LatencyPredictor
from pipeline.core.measurement import Failure, Measurement
from pipeline.core.statistics import Estimate
from pipeline.doctor import Finding
from pipeline.measure import Comparison, FileMeasurement, Measured
from pipeline.system.units import format_bytes, format_duration

__all__ = ["calibrated_json", "measured_json", "print_calibrated", "print_finding", "print_measured"]

_MARKS = {"ok": ("ok", "green"), "warning": ("WARN", "yellow"), "failure": ("FAIL", "bold red")}
_COLOURS = {"faster": "green", "slower": "bold red", "undecided": "yellow"}


def print_finding(console: Console, finding: Finding) -> None:
    """Print a finding in one line, and its advice in another."""
    word, colour = _MARKS[finding.level]
    console.print(Text.assemble((f"{word:<5}", colour), (f"{finding.what:<26}", "bold"), finding.found), soft_wrap=True)
    if finding.advice:
        console.print(Text(f"{'':<31}{finding.advice}", style="dim"), soft_wrap=True)


def print_calibrated(console: Console, path: Path, found: LatencyPredictor) -> None:
    """Print what the calibration at `path` can predict, and whether its measurements are in doubt."""
    console.print(
        f"\n{path}: fitted to {len(found.points)} plans; cross-validated error {100 * found.error:.1f} % of the latency"
    )
    if found.doubts:
        console.print(
            Text(
                "some measurements are doubtful (see the notes above and the file), so predictions may be wrong: end the "
                "other programs on both machines, and calibrate again",
                style="yellow",
            ),
            soft_wrap=True,
        )


def calibrated_json(path: Path, found: LatencyPredictor) -> dict[str, Any]:
    """The calibration at `path`, for scripts."""
    intercept, slope = found.line
    return {
        "file": str(path),
        "points": [vars(point) for point in found.points],
        "error": found.error,
        "doubts": list(found.doubts),
        "intercept": intercept,
        "slope": slope,
    }


def print_measured(console: Console, found: Measured) -> None:
    """Print a table with a column for each file, and then which file is faster."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for each in found.files:
        table.add_column(each.path.name, justify="right")
    columns = [_cells(each) for each in found.files]
    for title in dict.fromkeys(title for column in columns for title in column):
        table.add_row(title, *(column.get(title, "") for column in columns))
    console.print(table)
    for each in found.files:
        if isinstance(each.measured, Failure):
            console.print(Text(f"{each.path}: {each.measured.kind}: {each.measured.detail}", style="bold red"), soft_wrap=True)
        else:
            for remark in each.measured.remarks:
                advice = f"; {remark.advice}" if remark.advice else ""
                console.print(Text(f"{each.path.name}: {remark.text}{advice}", style="yellow"), soft_wrap=True)
            _print_time_series(console, each.measured)
    for comparison in found.comparisons:
        console.print(_sentence(comparison, found.files[0]))
    fingerprint = found.fingerprint
    duty = f", one run every {found.load.period_ms:g} ms" if found.load.period_ms else ""
    console.print(
        Text(
            f"\nfigures: {fingerprint.stamp} ({fingerprint.machine}, {fingerprint.system}), onnxruntime "
            f"{fingerprint.onnxruntime}, {fingerprint.threads} threads{duty}",
            style="dim",
        )
    )


def measured_json(found: Measured) -> dict[str, Any]:
    """Everything as plain data, including the raw runs."""
    return {
        "fingerprint": {**asdict(found.fingerprint), "settings": dict(found.fingerprint.settings)},
        "period_ms": found.load.period_ms,
        "sustain_s": found.load.sustain_s,
        "files": [_file_json(each) for each in found.files],
        "comparisons": [
            {
                "file": str(each.path),
                "against": str(found.files[0].path),
                "answer": each.answer,
                "ratio_p50": asdict(each.ratio_p50),
                "doubts": [remark.text for remark in each.doubts],
            }
            for each in found.comparisons
        ],
    }


def _file_json(each: FileMeasurement) -> dict[str, Any]:
    facts: dict[str, Any] = {"file": str(each.path), "size_bytes": each.size_bytes, "input_shape": list(each.shape)}
    measured = each.measured
    if isinstance(measured, Failure):
        return {**facts, "failure": asdict(measured)}
    return {
        **facts,
        "latency_p50_ms": asdict(measured.latency_p50_ms),
        "latency_p90_ms": asdict(measured.latency_p90_ms) if measured.latency_p90_ms else None,
        "session_creation_ms": _middle([process.session_creation_ms for process in measured.processes]),
        "first_run_ms": _middle([process.first_run_ms for process in measured.processes]),
        "cpu_ms_per_run": _middle([process.cpu_ms_per_run for process in measured.processes]),
        "memory": asdict(measured.memory),
        "before": asdict(measured.before) if measured.before else None,
        "after": asdict(measured.after) if measured.after else None,
        "clean_runs": measured.samples.clean,
        "judged_by": measured.samples.method,
        "remarks": [remark.text for remark in measured.remarks],
        "processes": [asdict(process) for process in measured.processes],
    }


def _cells(each: FileMeasurement) -> dict[str, str]:
    measured = each.measured
    cells = {"file size": format_bytes(each.size_bytes), "input": "x".join(map(str, each.shape))}
    if isinstance(measured, Failure):
        return {**cells, "failure": measured.kind}
    memory = measured.memory
    above = memory.peak_bytes - memory.baseline_bytes if memory.peak_bytes and memory.baseline_bytes else None
    cells["latency p50"] = _interval(measured.latency_p50_ms)
    p90 = measured.latency_p90_ms
    cells["latency p90"] = f"{p90.value:.3f} ms" if p90 else "too few runs"
    cells["session creation"] = f"{_middle([process.session_creation_ms for process in measured.processes]):.1f} ms"
    cells["first run"] = f"{_middle([process.first_run_ms for process in measured.processes]):.2f} ms"
    cells["CPU time per run"] = f"{_middle([process.cpu_ms_per_run for process in measured.processes]):.2f} ms"
    cells["peak memory"] = format_bytes(memory.peak_bytes) if memory.peak_bytes else "not known"
    cells["peak above the runtime's"] = format_bytes(above) if above is not None else "not known"
    cells["runs"] = (
        f"{sum(len(block) for p in measured.processes for block in p.latency_ms)} in {len(measured.processes)} processes"
    )
    cells["not preempted"] = f"{measured.samples.clean} of {measured.samples.total}"
    for title, condition in (("before", measured.before), ("after", measured.after)):
        if condition:
            cells[title] = _state(condition)
    return cells


def _state(condition: DeviceState) -> str:
    parts = []
    if condition.temperature_c is not None:
        parts.append(f"{condition.temperature_c:.0f} °C")
    if condition.clock_mhz is not None:
        parts.append(f"{condition.clock_mhz:.0f} MHz{'' if condition.clock_measured else ' requested'}")
    if condition.governor:
        parts.append(condition.governor)
    if condition.throttle_flags is not None:
        parts.append(f"throttled={condition.throttle_flags:#x}")
    return ", ".join(parts) or "not known"


def _print_time_series(console: Console, measured: Measurement) -> None:
    """Print how the median changed under a sustained load, in ten steps."""
    for process in measured.processes:
        if not process.course:
            continue
        console.print("\n      time      p50     temperature")
        step = max(1, len(process.course) // 10)
        for start in range(0, len(process.course), step):
            runs = [run for block in process.latency_ms[start : start + step] for run in block]
            seconds, temperature = process.course[min(start + step, len(process.course)) - 1]
            heat = f"{temperature:.0f} °C" if temperature is not None else "not known"
            console.print(f"{format_duration(seconds):>10} {_middle(runs):8.3f} ms  {heat}")


def _sentence(comparison: Comparison, first: FileMeasurement) -> Text:
    ratio = comparison.ratio_p50
    text = f"\n{comparison.path.name} is {comparison.answer}: {_percent(ratio)} of the p50 of {first.path.name}, run in turns"
    if comparison.answer == "undecided":
        text = f"\n{comparison.path.name}: undecided: {_percent(ratio)} of the p50 of {first.path.name}, run in turns"
        for remark in comparison.doubts:
            text += f"\n{remark.text}; {remark.advice}"
    return Text(text, style=_COLOURS[comparison.answer])


def _percent(ratio: Estimate) -> str:
    return f"{100 * ratio.value:.1f} % [{100 * ratio.low:.1f}, {100 * ratio.high:.1f}]"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ms [{estimate.low:.3f}, {estimate.high:.3f}]"


def _middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
