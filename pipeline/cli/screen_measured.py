"""Screen for measured files: their figures, and which of them is faster."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.screen_layers import layers_json, print_layers
from pipeline.core.device_state import DeviceState
from pipeline.core.measurement import Failure, Fingerprint, Measurement
from pipeline.core.network_input import NetworkInput
from pipeline.core.providers import CPU
from pipeline.core.statistics import Estimate
from pipeline.measuring.measure_files import Comparison, FileMeasurement, Measured
from pipeline.system.units import format_bytes, format_duration

__all__ = ["figures_line", "file_facts", "measured_json", "print_measured", "show_failure"]

_COLOURS = {"faster": "green", "slower": "bold red", "undecided": "yellow"}


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
            text = f"{each.path}: {show_failure(each.measured, random_inputs=each.random_inputs)}"
            console.print(Text(text, style="bold red"), soft_wrap=True)
        else:
            if each.fallback:
                console.print(Text(f"{each.path.name}: {each.fallback}", style="bold yellow"), soft_wrap=True)
            for remark in each.measured.remarks:
                advice = f"; {remark.advice}" if remark.advice else ""
                console.print(Text(f"{each.path.name}: {remark.text}{advice}", style="yellow"), soft_wrap=True)
            _print_time_series(console, each.measured)
    for comparison in found.comparisons:
        console.print(_sentence(comparison, found.files[0]))
    for each in found.files:
        if found.profiled and each.nodes is not None:
            print_layers(console, each.path.name, each.nodes)
    console.print(Text(figures_line(found.fingerprint, found.load.period_ms), style="dim"))


def show_failure(failure: Failure, *, random_inputs: bool) -> str:
    """The failure in one line, with what to do about it."""
    advice = ""
    if failure.kind == "fallback":
        advice = "; figures of such a mixture are refused: choose another provider, or give --allow-fallback"
    elif failure.kind in ("run-error", "wrong-output") and random_inputs:
        advice = "; the inputs were random: give real ones with --inputs"
    return f"{failure.kind}: {failure.detail}{advice}"


def figures_line(fingerprint: Fingerprint, period_ms: float, *, of_one_configuration: bool = True) -> str:
    """Where and how the figures were measured. `of_one_configuration`: all with the same provider and number of threads."""
    duty = f", one run every {period_ms:g} ms" if period_ms else ""
    provider = dict(fingerprint.settings).get("provider", CPU)
    machine = f"{fingerprint.machine}, {fingerprint.system}"
    if not of_one_configuration:
        return f"\nfigures: {fingerprint.mode} ({machine}), onnxruntime {fingerprint.onnxruntime}{duty}"
    other = "" if provider == CPU else f" with {provider}"
    threads = f"{fingerprint.threads} thread{'s' if fingerprint.threads > 1 else ''}"
    return f"\nfigures: {fingerprint.stamp} ({machine}), onnxruntime {fingerprint.onnxruntime}{other}, {threads}{duty}"


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


def file_facts(path: Path, size_bytes: int, inputs: tuple[NetworkInput, ...]) -> dict[str, Any]:
    """What is known of a file without running it."""
    return {
        "file": str(path),
        "size_bytes": size_bytes,
        "input_shape": list(inputs[0].shape) if inputs else [],
        "inputs": [asdict(each) for each in inputs],
    }


def _file_json(each: FileMeasurement) -> dict[str, Any]:
    facts = file_facts(each.path, each.size_bytes, each.inputs)
    if each.nodes is not None:
        facts["layers"] = layers_json(each.nodes)
    if each.fallback is not None:
        facts["fallback"] = each.fallback
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
    cells = {"file size": format_bytes(each.size_bytes), "input": _inputs_cell(each)}
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


def _inputs_cell(each: FileMeasurement) -> str:
    """The shape of a single float32 input; all that is known of others, one per line."""
    if len(each.inputs) == 1 and each.inputs[0].type == "float32":
        return each.inputs[0].sizes
    return "\n".join(str(value) for value in each.inputs) or "none"


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
